"""One word for one thing: no two classes of one name, and few modules outside of a room."""

import ast
from collections import Counter
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("xgr_runtime", "router", "prefill_worker", "decode_worker", "kernels/xgr_kernels")


def test_no_two_classes_have_one_name() -> None:
    files = chain.from_iterable((ROOT / package).rglob("*.py") for package in PACKAGES)
    named = Counter(
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert len(named) > 300, "the packages were read"
    assert [name for name, count in named.items() if count > 1] == []


def test_the_runtime_has_rooms() -> None:
    loose = {file.stem for file in (ROOT / "xgr_runtime").glob("*.py")} - {"__init__"}
    assert loose == {"checkpoint", "client", "errors", "files"}
