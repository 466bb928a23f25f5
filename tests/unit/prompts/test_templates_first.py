"""Templates that cannot serve end a start before anything is compiled or loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from made_tokenizers import SIDS, byte_pairs

from xgr_runtime.catalog import seal_catalog
from xgr_runtime.errors import CatalogError
from xgr_runtime.launcher.deployment import _check_templates

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"messages": [{"role": "user", "content": "{history}"}]}, "has no chat template"),
        ({"text": "{history}", "item": "{colour}"}, "{colour} is neither"),
        ({"generation_prefix": "<|none|>"}, "no chat template"),
        ({"text": "the user {history}"}, None),
        (None, None),
    ],
)
def test_a_start(template: Any, said: str | None, tmp_path: Path) -> None:
    byte_pairs(tmp_path, normalized=False)
    (tmp_path / "index.json").write_text(json.dumps({"1": [SIDS[0], SIDS[12]], "2": [SIDS[1], SIDS[13]]}))
    (tmp_path / "catalog.json").write_text(json.dumps({"templates": {"t": template}} if template else {}))
    memory, _ = seal_catalog(tmp_path / "index.json", tmp_path)
    with memory:
        if said is None:
            _check_templates(memory, tmp_path)
            return
        with pytest.raises(CatalogError, match=r"templates\.t") as raised:
            _check_templates(memory, tmp_path)
    assert said in str(raised.value)
