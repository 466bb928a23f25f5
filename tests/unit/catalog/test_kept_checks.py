"""A built file is verified once: what is kept of that holds for its bytes and this code, and no others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from small_catalogs import example

from xgr_runtime.catalog import Catalog, load_catalog, seal_catalog
from xgr_runtime.catalog.file import sealed_file
from xgr_runtime.catalog.items import pack_strings
from xgr_runtime.catalog.load import handed_down
from xgr_runtime.catalog.sealed import inherited_path
from xgr_runtime.errors import CatalogError

verifying = sys.modules["xgr_runtime.catalog.verify"]  # its name is also a function's


class Kept(dict[str, bytes]):
    """In memory."""

    def read(self, key: str) -> bytes | None:
        return self.get(key)

    def write(self, key: str, content: bytes) -> None:
        self[key] = content


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions that all of was read of."""
    versions: list[str] = []
    real = verifying.verify

    def noted(catalog: Catalog, name: str) -> None:
        versions.append(catalog.version)
        real(catalog, name)

    monkeypatch.setattr(verifying, "verify", noted)
    return versions


def test_a_file_is_verified_once(built: Path, verified: list[str]) -> None:
    kept = Kept()
    for _ in range(2):
        assert load_catalog(built, kept=kept).version == example().version
        seal_catalog(built, kept=kept)[0].close()
    assert verified == [example().version]
    example(items=150).save(built)
    load_catalog(built, kept=kept)
    load_catalog(built)
    assert verified == [example().version, *2 * [example(items=150).version]]


def test_with_other_code_it_is_verified_again(
    built: Path, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    load_catalog(built, kept=kept)
    monkeypatch.setattr(verifying, "_sources", lambda: b"another release")
    load_catalog(built, kept=kept)
    assert len(verified) == len(kept) == 2


def test_what_was_found_sound_says_nothing_of_other_bytes(built: Path) -> None:
    kept = Kept()
    load_catalog(built, kept=kept)
    with built.open("r+b") as file:
        file.seek(built.stat().st_size // 2)
        file.write(b"\xff" * 256)
    with pytest.raises(CatalogError, match="checksum differs"):
        load_catalog(built, kept=kept)
    catalog = example()
    wrong = {name: array.copy() for name, array in catalog.arrays.items()}
    wrong["lo.1"][3] += 10**6  # its checksums hold
    Catalog(catalog.version, catalog.vocab_size, catalog.templates, wrong).save(built)
    for _ in range(2):
        with pytest.raises(CatalogError, match=r"lo\.1"):
            load_catalog(built, kept=kept)
    assert len(kept) == 1


def test_memory_that_is_handed_down_is_taken_if_it_is_that_version(built: Path) -> None:
    version = example().version
    with sealed_file(built) as memory:
        path = Path(inherited_path(memory))
        found = handed_down(path, version)
        assert found is not None and found.fileno() != memory.fileno()
        found.close()
        assert handed_down(path, "another") is None
    assert handed_down(built, version) is None, "a file on the disk may change"
    assert handed_down(built.with_name("none"), version) is None


def test_damaged_memory_is_not_taken(built: Path) -> None:
    with built.open("r+b") as file:
        file.seek(built.stat().st_size // 2)
        file.write(b"\xff" * 256)
    with sealed_file(built) as memory:
        assert handed_down(Path(inherited_path(memory)), example().version) is None


@pytest.mark.parametrize("piece", [4, 5, 7, 1 << 20])
def test_text_is_decoded_piece_by_piece(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_DECODED", piece)
    text = "aä€😀bé" * 5
    good = np.frombuffer(text.encode(), np.uint8)
    assert verifying._utf8_problem(good) is None
    assert verifying._utf8_problem(pack_strings([]).blob) is None
    for at in range(len(good)):
        bad = good.copy()
        bad[at] = 0xFF
        with pytest.raises(UnicodeDecodeError):
            str(bad.data, "utf-8")
        assert "are not UTF-8" in verifying._utf8_problem(bad)
    assert "at byte 3" in verifying._utf8_problem(
        np.frombuffer("aä\udcff".encode("utf-8", "surrogateescape"), np.uint8)
    )
