"""The house: no two classes of one name, no long function, and few modules outside of a room."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("xgr_runtime", "router", "any_worker", "prefill_worker", "decode_worker", "kernels/xgr_kernels")


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """All of the product's syntax, with the package that it is of."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            yield from ((package, node) for node in ast.walk(ast.parse(file.read_text())))


def test_no_two_classes_have_one_name() -> None:
    named = Counter(node.name for _, node in nodes() if isinstance(node, ast.ClassDef))
    assert len(named) > 300, "the packages were read"
    assert [name for name, count in named.items() if count > 1] == []


def test_no_function_outside_of_kernels_is_over_60_lines() -> None:
    long = [
        node.name
        for package, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "kernels" not in package
        if (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


def test_the_runtime_has_rooms() -> None:
    loose = {file.stem for file in (ROOT / "xgr_runtime").glob("*.py")} - {"__init__"}
    assert loose == {"errors", "files"}
