"""Preparing: a checkpoint that loads, made once per settings, with nothing half made left behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from xgr_runtime.cli.demo.data import ShopSettings
from xgr_runtime.cli.demo.prepare import DemoSettings, TrainingPlan, prepare
from xgr_runtime.cli.demo.training import (
    TrainingProgress,
    TrainSettings,
    learning_rate_share,
    planned_steps,
    train,
)

TINY = DemoSettings(
    ShopSettings(items=120, users=40, codebook=16),
    TrainingPlan(seconds=60.0, least_steps=2, most_steps=2, hidden=16, rows=1),
)


def test_makes_a_checkpoint_with_the_embedding_of_its_tokenizer(tmp_path: Path) -> None:
    made = prepare(TINY, tmp_path, report=lambda _: None)
    model = AutoModelForCausalLM.from_pretrained(made.model)
    assert model.config.vocab_size == 3 + 3 * 16
    assert model.config.model_type == "qwen3"
    assert len(made.catalog.read_text().splitlines()) == 120
    assert len(made.histories.read_text().splitlines()) == 40


def test_a_second_start_trains_nothing(tmp_path: Path) -> None:
    steps: list[TrainingProgress] = []
    first = prepare(TINY, tmp_path, report=steps.append)
    assert len(steps) == 2
    assert prepare(TINY, tmp_path, report=steps.append) == first
    assert len(steps) == 2


def test_other_settings_go_to_another_folder(tmp_path: Path) -> None:
    reseeded = replace(TINY, shop=replace(TINY.shop, seed=8))
    slower = replace(TINY, training=replace(TINY.training, seconds=61.0))
    assert len({settings.folder(tmp_path) for settings in (TINY, reseeded, slower)}) == 3


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(TINY, tmp_path, report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_training_learns_and_repeats_itself(tmp_path: Path) -> None:
    sequences = [np.array([1, *[3, 4, 5] * 8])] * 8
    settings = TrainSettings(
        8, 1, seconds=600.0, least_steps=80, most_steps=80, hidden=16, rows=1, row_tokens=64, threads=1
    )
    losses: list[list[float]] = []
    for run in ("first", "second"):
        steps: list[TrainingProgress] = []
        train(sequences, settings, tmp_path / run, steps.append)
        losses.append([state.loss for state in steps])
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert losses[0] == losses[1]  # one thread: the same sums in the same order


def test_no_steps_save_random_weights_of_the_seed(tmp_path: Path) -> None:
    embeddings = []
    for run, seed in enumerate((7, 7, 8)):
        folder = tmp_path / str(run)
        assert (
            train([], TrainSettings(8, 1, most_steps=0, hidden=16, seed=seed), folder, lambda _: None) is None
        )
        embeddings.append(AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight)
    assert torch.equal(embeddings[0], embeddings[1])  # type: ignore[arg-type]
    assert not torch.equal(embeddings[0], embeddings[2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "elapsed", "planned"),
    [(10, 0.1, 500), (10, 2.0, 300), (10, 60.0, 200)],
    ids=["fast: all of them", "slower: what fits", "slowest: the fewest useful"],
)
def test_plans_the_steps_that_fit_the_budget(step: int, elapsed: float, planned: int) -> None:
    settings = TrainSettings(8, 1, seconds=60.0, least_steps=200, most_steps=500)
    assert planned_steps(settings, step, elapsed) == planned


def test_learning_rate_rises_then_falls() -> None:
    shares = [learning_rate_share(passed) for passed in np.linspace(0, 1, 101)]
    peak = int(np.argmax(shares))
    assert shares[peak] == pytest.approx(1.0, abs=1e-6)
    assert all(np.diff(shares[: peak + 1]) > 0)
    assert all(np.diff(shares[peak:]) < 0)
    assert 0 < shares[-1] < 0.05
