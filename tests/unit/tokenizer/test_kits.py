"""Tokenizers of public projects, where the folder of real data has them: the ids that their own code made."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xgr_runtime.tokenizer import around, read_tokenizer

KITS = Path(os.environ.get("XGR_TEST_DATA") or "/nonexistent") / "kits"
pytestmark = pytest.mark.skipif(not KITS.is_dir(), reason="needs XGR_TEST_DATA with kits/")


def as_written(kit: str, text: str) -> str:
    """That kit's texts were read back from ids, with blanks around its SIDs and the begin token spelt out."""
    if kit != "lcrec":
        return text
    text = re.sub(r" (<[abcd]_\d+>)", r"\1", text.removeprefix("<s>").removeprefix(" "))
    return re.sub(r"(<d_\d+>) ,", r"\1,", text)


@pytest.mark.parametrize(
    ("kit", "model", "cases"),
    [
        ("minionerec", "model", "cases"),
        ("openonerec", "model", "cases"),
        ("onerec-think", "model", "cases"),
        ("onerec-think", "model", "cases_think"),
        ("lcrec", "model", "cases"),
        ("lcrec", "adapter", "cases_lora"),
    ],
)
def test_prompts_have_the_ids_of_evaluation(kit: str, model: str, cases: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, KITS / "unpack.py", KITS / kit, tmp_path], check=True, capture_output=True
    )
    tokenizer = read_tokenizer(tmp_path / model)
    assert tokenizer is not None
    rows = [json.loads(line) for line in (KITS / kit / f"{cases}.jsonl").read_text().splitlines()]
    assert len(rows) >= 20
    for row in rows:
        text = as_written(kit, row["prompt_text"])
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert [*around(tokenizer)[0], *ids] == row["prompt_ids"]
