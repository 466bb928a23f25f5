"""What launches cost, kept from one run to the next: whole, bounded, and ignored where it cannot be."""

import os
from pathlib import Path

import msgspec
import pytest

from xgr_runtime.config import DecodeConfig, PrefillConfig
from xgr_runtime.scheduling.cost_model import LEAST, CostModel, alone, prompt_work
from xgr_runtime.wire.messages import ModelIdentity, StepCost
from xgr_runtime.worker import known_costs
from xgr_runtime.worker.known_costs import KEEP_EVERY, KnownCosts

MODEL = ModelIdentity("hash", "float32", 4, 2, 32, 192, 1027, 1)
TRUTH = StepCost(4e-3, 5e-5, 0.0)


def prefill(**settings: object) -> PrefillConfig:
    shared = {"model_path": "m", "control_address": "ipc:///c"}
    return msgspec.convert(shared | settings, PrefillConfig)


def known(cache: Path | None, **settings: object) -> KnownCosts:
    return KnownCosts.of(CostModel(), prefill(**settings), MODEL, cache, ["transformers", "cpu"])


def learned(costs: KnownCosts) -> KnownCosts:
    for n in range(100, 100 * (LEAST + 1), 100):
        costs.costs.observe(prompt_work(0, n), alone(TRUTH, prompt_work(0, n)))
    return costs


def the_file(cache: Path) -> Path:
    (file,) = (cache / known_costs.FOLDER).iterdir()
    return file


def test_a_run_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    learned(known(tmp_path)).keep()
    again = known(tmp_path)
    again.begin([])
    assert again.costs.cost is not None
    work = prompt_work(0, 700)
    assert alone(again.costs.cost, work) == pytest.approx(alone(TRUTH, work), rel=0.05)


@pytest.mark.parametrize("other", [{"threads": 7}, {"device": "cuda:1"}], ids=str)
def test_others_begin_by_themselves(tmp_path: Path, other: dict[str, object]) -> None:
    learned(known(tmp_path)).keep()
    assert known(tmp_path, **other).remembered() is None
    decode, how = DecodeConfig(model_path="m", control_address="c", data_address="d", catalog="c"), ["cpu"]
    assert KnownCosts.of(CostModel(), decode, MODEL, tmp_path, ["transformers", *how]).remembered() is None
    assert KnownCosts.of(CostModel(), prefill(), MODEL, tmp_path, how).remembered() is None
    trained = msgspec.structs.replace(MODEL, weights_hash="another")
    assert (
        KnownCosts.of(CostModel(), prefill(), trained, tmp_path, ["transformers", *how]).remembered() is None
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"fixed": 1e-3}',
        b'{"fixed": -1, "per_token": 1e-5, "per_pair": 0}',
        b'{"fixed": 0, "per_token": 0, "per_pair": 0}',
        b'{"fixed": 1e9, "per_token": 0, "per_pair": 0}',
        b'{"fixed": NaN, "per_token": 0, "per_pair": 0}',
        b'{"fixed": 1e999, "per_token": 0, "per_pair": 0}',
        b'{"fixed": 1, "per_token": 0, "per_pair": 0, "most_tokens": 0}',
        b'{"fixed": 1, "per_token": 0, "per_pair": 0, "new": 1}',
        b"[" * 100_000,
        b"\xff\xfe" * 5000,
        b"\0" * 10,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_what_is_damaged_is_ignored_with_a_line(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    learned(known(tmp_path)).keep()
    the_file(tmp_path).write_bytes(content)
    assert known(tmp_path).remembered() is None
    assert len(caplog.records) == 1 and str(the_file(tmp_path)) in caplog.text
    learned(known(tmp_path)).keep()
    assert known(tmp_path).remembered() is not None


def test_a_folder_in_its_place_is_no_error(tmp_path: Path) -> None:
    learned(known(tmp_path)).keep()
    file = the_file(tmp_path)
    file.unlink()
    file.mkdir()
    assert known(tmp_path).remembered() is None
    learned(known(tmp_path)).keep()


def test_a_run_that_learned_nothing_keeps_nothing(tmp_path: Path) -> None:
    known(tmp_path).keep()
    assert not (tmp_path / known_costs.FOLDER).exists()
    nowhere = known(None)
    learned(nowhere).keep()
    assert nowhere.remembered() is None


def test_it_is_kept_now_and_then(tmp_path: Path) -> None:
    costs = learned(known(tmp_path))
    costs.keep_now_and_then(0.0)
    assert costs._writer
    costs._writer.join()
    the_file(tmp_path).unlink()
    costs.keep_now_and_then(KEEP_EVERY - 1)
    assert not costs._writer.is_alive() and not list((tmp_path / known_costs.FOLDER).iterdir())
    costs.keep_now_and_then(KEEP_EVERY + 1)
    costs._writer.join()
    assert the_file(tmp_path).exists()


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_costs, "KEPT", 3)
    folder = tmp_path / known_costs.FOLDER
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.json").touch()
        os.utime(folder / f"{number}.json", (number, number))
    learned(known(tmp_path)).keep()
    names = {path.name for path in folder.iterdir()}
    assert len(names) == 3 and {"4.json", "5.json"} < names
