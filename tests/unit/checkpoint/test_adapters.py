"""Adapters are merged as they were trained, into a folder like any other; others are refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import MadeAdapter
from checkpoints import MakeCheckpoint
from safetensors.torch import load_file, save_file

from xgr_runtime.cache import merged
from xgr_runtime.cache.merged import merged_checkpoint
from xgr_runtime.checkpoint import described, find_adapter, read_config, weight_files, weights_hash
from xgr_runtime.checkpoint.merging import Merger
from xgr_runtime.errors import ModelError

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@pytest.fixture
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama", 2)


@pytest.fixture
def tied(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama", 2, tie_word_embeddings=True)


def plain(_: str) -> tuple[int, float]:
    return 4, 16 / 4


@contextmanager
def merging(adapter: Path, base: Path | str, tmp_path: Path, dtype: str = "float32") -> Iterator[Path]:
    with merged_checkpoint(adapter, str(base), tmp_path / "cache", dtype) as folder:
        yield folder


def check(made: MadeAdapter, folder: Path, tmp_path: Path, tie: bool = False) -> None:
    """Weights and config of the merged checkpoint, within one rounding to float32."""
    with merging(folder, made.base, tmp_path) as out:
        found, config = load_file(out / "model.safetensors"), read_config(out)
    assert set(found) == set(made.right)
    for name, right in made.right.items():
        torch.testing.assert_close(found[name].double(), right, rtol=3e-6, atol=1e-6)
    assert config["vocab_size"] == len(found[f"{EMBEDDING}.weight"])
    assert config["tie_word_embeddings"] is tie and config["dtype"] == "float32"


PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 64, "o_proj": 8}}


def of_patterns(module: str) -> tuple[int, float]:
    rank = 2 if module.endswith("q_proj") else 4
    alpha = 64 if ".layers.1." in module else 8 if module.endswith("o_proj") else 16
    return rank, alpha / rank


@pytest.mark.parametrize(
    ("settings", "scaling", "kept"),
    [
        ({}, plain, ""),
        ({"use_rslora": True}, lambda _: (4, 16 / 4**0.5), ""),
        (PATTERNS, of_patterns, ""),
        ({"lora_alpha": 3, "r": 7}, lambda _: (7, 3 / 7), ""),
        ({"layers_to_transform": [1]}, plain, r"layers\.1\."),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, plain, r"layers\.[12]|v_proj|o_proj"),
    ],
    ids=["plain", "rslora", "patterns", "odd", "one-layer", "excluded"],
)
def test_products_are_added(
    settings: dict[str, Any],
    scaling: Callable[[str], tuple[int, float]],
    kept: str,
    base: Path,
    tmp_path: Path,
) -> None:
    made = MadeAdapter(base, settings=settings)
    made.add_products(scaling, kept)
    check(made, made.save(tmp_path / "adapter"), tmp_path)


NAMINGS = {
    "before-0.21": "{}.weight",
    "0.21": "{}.modules_to_save.weight",
    "as-in-memory": "{}.modules_to_save.default.weight",
}


@pytest.mark.parametrize("rows", [0, 120], ids=["same", "resized"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_weights_that_were_trained_take_the_place(naming: str, rows: int, base: Path, tmp_path: Path) -> None:
    made = MadeAdapter(base, settings={"modules_to_save": ["embed_tokens", "lm_head"]})
    made.add_products(plain)
    for module in (EMBEDDING, HEAD):
        if naming == "0.21":  # copies of what they were before lie beside them
            made.replace(f"{module}.weight", f"{module}.weight", rows)
            made.replace(f"{module}.weight", f"{module}.original_module.weight", rows)
        made.replace(f"{module}.weight", NAMINGS[naming].format(module), rows)
    check(made, made.save(tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize("trained", [[EMBEDDING], [HEAD], [EMBEDDING, HEAD]], ids=lambda names: len(names))
def test_what_training_parted_is_no_longer_tied(trained: list[str], tied: Path, tmp_path: Path) -> None:
    made = MadeAdapter(tied, settings={"modules_to_save": [name.rpartition(".")[2] for name in trained]})
    made.add_products(plain)
    made.right[f"{HEAD}.weight"] = made.right[f"{EMBEDDING}.weight"]
    for module in trained:
        made.replace(f"{module}.weight", f"{module}.weight")
    check(made, made.save(tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]}])
def test_two_names_of_one_weight_stay_one(settings: dict[str, Any], tied: Path, tmp_path: Path) -> None:
    """Saved because there are new tokens, or trained together."""
    made = MadeAdapter(tied, settings=settings)
    made.add_products(plain)
    made.tensors[f"{HEAD}.weight"] = made.replace(f"{EMBEDDING}.weight", f"{EMBEDDING}.weight", 111)
    check(made, made.save(tmp_path / "adapter"), tmp_path, tie=True)


def test_rows_and_matrices_of_the_vocabulary(base: Path, tmp_path: Path) -> None:
    made = MadeAdapter(base, settings={"trainable_token_indices": {"embed_tokens": [3, 90]}})
    made.add_products(plain)
    rows, name = torch.randn(2, 48), f"{EMBEDDING}.weight"
    made.tensors[f"{EMBEDDING}.token_adapter.trainable_tokens_delta"] = rows
    made.right[name][[3, 90]] = rows.double()
    check(made, made.save(tmp_path / "adapter"), tmp_path)
    made = MadeAdapter(base, ["q_proj"])
    made.add_products(plain)
    a, b = torch.randn(4, 97), torch.randn(48, 4)
    made.tensors |= {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    made.right[name] = made.right[name] + 4 * (b.double() @ a.double()).T
    check(made, made.save(tmp_path / "other"), tmp_path)


def test_biases(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    made = MadeAdapter(make_checkpoint("qwen2", 2), ["q_proj", "v_proj"], {"bias": "all", "lora_bias": True})
    made.add_products(plain)
    for layer in range(3):
        of = f"model.layers.{layer}.self_attn"
        made.replace(f"{of}.k_proj.bias", f"{of}.k_proj.bias")
        made.replace(f"{of}.q_proj.bias", f"{of}.q_proj.base_layer.bias")
        more = torch.randn(made.weights[f"{of}.v_proj.bias"].shape)
        made.tensors[f"{of}.v_proj.lora_B.bias"] = more
        made.right[f"{of}.v_proj.bias"] = made.right[f"{of}.v_proj.bias"] + 4 * more.double()
    check(made, made.save(tmp_path / "adapter"), tmp_path)


@pytest.mark.parametrize("saved", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("run", ["bfloat16", "float32"])
def test_each_weight_is_rounded_once(saved: str, run: str, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    weights = {name: w.to(kinds[saved]) for name, w in load_file(base / "model.safetensors").items()}
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    made = MadeAdapter(tmp_path / "base")
    made.add_products(plain)
    with merging(made.save(tmp_path / "adapter"), made.base, tmp_path, run) as out:
        found = load_file(out / "model.safetensors")
    for name, right in made.right.items():
        if f"{name[:-6]}lora_A.weight" not in made.tensors:
            assert torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype
            continue
        # Sums of four products differ in their last bit, so a few are rounded to the other neighbour.
        assert found[name].dtype == kinds[run]
        different = found[name] != right.float().to(kinds[run])
        assert run == "float32" or different.float().mean() < 0.01
        torch.testing.assert_close(
            found[name].double(), right, rtol=2**-8 if run != "float32" else 3e-6, atol=1e-6
        )


@pytest.mark.parametrize("place", ["beside", "inside", "alone"])
def test_where_an_adapter_may_lie(place: str, base: Path, tmp_path: Path) -> None:
    """Among the files of its base, in a folder `adapter` there, or in one of its own that names the base."""
    made = MadeAdapter(base)
    made.add_products(plain)
    model = tmp_path / "model"
    if place != "alone":
        shutil.copytree(base, model)
    folder = made.save(
        model / "adapter" if place == "inside" else model, base_model_name_or_path="elsewhere/x"
    )
    if place == "alone":
        (tmp_path / "trained-on").symlink_to(base)
        made.save(model, base_model_name_or_path="trained-on")
    found = find_adapter(model)
    assert found is not None and found.folder == folder
    with merging(model, "", tmp_path) as out:
        name = "model.layers.1.self_attn.q_proj.weight"
        right = made.right[name].float()
        torch.testing.assert_close(load_file(out / "model.safetensors")[name], right, rtol=3e-6, atol=1e-6)


def test_a_tokenizer_beside_the_adapter_is_that_of_training(base: Path, tmp_path: Path) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    shutil.copytree(base, tmp_path / "base")
    adapter = made.save(tmp_path / "adapter")
    for folder in (tmp_path / "base", adapter):
        (folder / "tokenizer.json").write_text(folder.name)
    (tmp_path / "base/chat_template.jinja").write_text("of the base")
    with described(adapter, str(tmp_path / "base")) as files:
        assert (files / "tokenizer.json").read_text() == "adapter"
        assert not (files / "chat_template.jinja").exists() and not list(files.glob("*.safetensors"))
    (adapter / "tokenizer.json").unlink()
    with merging(adapter, tmp_path / "base", tmp_path) as out:
        assert (out / "tokenizer.json").read_text() == "base"
        assert (out / "chat_template.jinja").read_text() == "of the base"
    (adapter / "added_tokens.json").write_text("{}")
    with (
        pytest.raises(ModelError, match=r"added_tokens\.json is part of a tokenizer whose vocabulary is not"),
        described(adapter, str(tmp_path / "base")),
    ):
        pass


def test_what_was_merged_is_found_by_content(base: Path, tmp_path: Path) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter = made.save(tmp_path / "adapter")
    with merging(adapter, base, tmp_path) as first:
        when = (first / "model.safetensors").stat().st_mtime_ns
        digest = weights_hash(first, weight_files(first))
    with merging(adapter, base, tmp_path) as again:
        assert again == first and (again / "model.safetensors").stat().st_mtime_ns == when
    changes: list[Callable[[], object]] = [
        lambda: made.save(adapter, lora_alpha=17),
        lambda: (adapter / "tokenizer.json").write_text("{}"),
        lambda: (made.tensors.popitem()[1].zero_(), made.add_products(plain), made.save(adapter)),
    ]
    seen = {first.name}
    for change in changes:
        change()
        with merging(adapter, base, tmp_path) as other:
            assert other.name not in seen
            seen.add(other.name)
    made.save(adapter)
    with merging(adapter, base, tmp_path / "elsewhere") as other:  # another machine makes the same of it
        (other / "config.json").read_text()
    assert digest != weights_hash(other, weight_files(other))


def test_two_machines_make_the_same_bits(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cores they have."""
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter, found = made.save(tmp_path / "adapter"), set()
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        with merging(adapter, base, tmp_path / str(cores)) as out:
            found.add((out / "model.safetensors").read_bytes())
    assert len(found) == 1


def test_only_so_many_stay_and_none_that_is_in_use(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "KEPT", 1)
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter, left = tmp_path / "adapter", []
    (tmp_path / "cache/merged/.partial-killed").mkdir(parents=True)
    with merging(made.save(adapter), base, tmp_path) as used:
        os.utime(used, (0, 0))
        for number in range(1, 4):
            with merging(made.save(adapter, lora_alpha=number + 20), base, tmp_path) as out:
                os.utime(out, (number, number))
                left.append(out)
        assert [out.exists() for out in (used, *left)] == [True, False, True, True]
    assert not (tmp_path / "cache/merged/.partial-killed").exists()


def test_a_disk_without_room_is_said_and_nothing_is_left(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter = made.save(tmp_path / "adapter")
    monkeypatch.setattr(merged, "_SPARE", 1 << 62)
    with (
        pytest.raises(ModelError, match=r"merging takes .* MiB in .*--cache-folder"),
        merging(adapter, base, tmp_path),
    ):
        pass
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr(Merger, "write", full)
    with (
        pytest.raises(ModelError, match=r"cannot be merged .*No space left.*make room"),
        merging(adapter, base, tmp_path),
    ):
        pass
    assert [path.name for path in (tmp_path / "cache/merged").iterdir()] == ["lock"]
    with (
        pytest.raises(ModelError, match="there is none: name one by --cache-folder"),
        merged_checkpoint(adapter, str(base), None),
    ):
        pass


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "ia3": ({"peft_type": "IA3"}, "it is IA3, only LoRA is"),
    "prompt": ({"peft_type": "PROMPT_TUNING"}, "prompt tuning"),
    "prefix": ({"peft_type": "PREFIX_TUNING"}, "prefix tuning"),
    "new-kind": ({"peft_type": "NEXT"}, "of peft_type 'NEXT'"),
    "no-kind": ({"peft_type": None}, "of peft_type None"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' has changed"),
    "olora": ({"init_lora_weights": "olora"}, "has changed the weights"),
    "loftq": ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    "replicated": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "invoked": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "unknown": ({"use_next_thing": 3}, "its use_next_thing is 3"),
    "bias": ({"bias": "some"}, "its bias is 'some'"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_other_kinds_are_refused_by_name(
    settings: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter = made.save(tmp_path / "adapter", **settings)
    with pytest.raises(ModelError, match=r"not merged here, .*merge_and_unload") as caught:
        find_adapter(adapter, str(base))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def _drop(made: MadeAdapter) -> None:
    del made.tensors["model.layers.1.self_attn.q_proj.lora_B.weight"]


def _shorten(made: MadeAdapter) -> None:
    for part in "AB":
        del made.tensors[f"model.layers.2.self_attn.v_proj.lora_{part}.weight"]


def _spoil(made: MadeAdapter) -> None:
    made.tensors["model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")


def _widen(made: MadeAdapter) -> None:
    made.tensors["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 50)


def _second(made: MadeAdapter) -> None:
    for name in list(made.tensors):
        other = name.replace(".weight", ".other.weight")
        made.tensors[other] = made.tensors[name]


def _stranger(made: MadeAdapter) -> None:
    made.tensors["model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 48)
    made.tensors["model.layers.9.self_attn.q_proj.lora_B.weight"] = torch.zeros(48, 4)


def _magnitude(made: MadeAdapter) -> None:
    made.tensors["model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight"] = torch.ones(48)


def _half_resized(made: MadeAdapter) -> None:
    made.replace(f"{EMBEDDING}.weight", f"{EMBEDDING}.weight", 120)


def _wrong_rows(made: MadeAdapter) -> None:
    made.tensors[f"{EMBEDDING}.token_adapter.trainable_tokens_delta"] = torch.zeros(3, 48)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_drop, "has one of two matrices"),
        (_shorten, r"lacks the matrices of model\.layers\.2\.self_attn\.v_proj"),
        (_spoil, "holds values that are no numbers"),
        (_widen, "do not make"),
        (_second, r"several adapters \(default, other\)"),
        (_stranger, "has no such weight"),
        (_magnitude, "has no such weight"),
        (_half_resized, "other numbers of rows"),
        (_wrong_rows, "not those of trainable_token_indices"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    spoil: Callable[[MadeAdapter], None], said: str, base: Path, tmp_path: Path
) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    spoil(made)
    adapter = made.save(tmp_path / "adapter")
    with pytest.raises(ModelError, match=said), merging(adapter, base, tmp_path):
        pass


def _no_settings(folder: Path, _: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _pickled(folder: Path, _: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _unnamed(folder: Path, _: Path) -> None:
    (folder / "config.json").write_text("{}")


def _another(folder: Path, _: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))


def _cut(folder: Path, _: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def _quantised(_: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))


def _empty(_: Path, base: Path) -> None:
    (base / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "given", "said"),
    [
        (_no_settings, True, "adapter_config.json is missing, which says how"),
        (_pickled, True, r"adapter_model\.bin is a pickle and is never read"),
        (_unnamed, False, "an adapter alone, of 'some/base', which is no folder here.*--base-model-path"),
        (_another, True, "the adapter is one of a qwen3, .* is a llama.*--base-model-path"),
        (_cut, True, "damaged or incomplete"),
        (_quantised, True, "its weights are quantised"),
        (_empty, True, "neither model.safetensors nor"),
    ],
)
def test_a_folder_that_is_no_whole_adapter(
    change: Callable[[Path, Path], None], given: bool, said: str, base: Path, tmp_path: Path
) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    adapter = made.save(tmp_path / "adapter", base_model_name_or_path="some/base")
    shutil.copytree(base, tmp_path / "base")
    change(adapter, tmp_path / "base")
    with (
        pytest.raises(ModelError, match=said),
        merging(adapter, tmp_path / "base" if given else "", tmp_path),
    ):
        pass


def test_which_base_is_never_guessed(base: Path, tmp_path: Path) -> None:
    made = MadeAdapter(base)
    made.add_products(plain)
    shutil.copytree(base, tmp_path / "model")
    made.save(tmp_path / "model", base_model_name_or_path=str(base))
    with pytest.raises(ModelError, match=r"names the weights in .* has some, too: say which"):
        find_adapter(tmp_path / "model")
    found = find_adapter(tmp_path / "model", str(base))
    assert found is not None and found.base == base
    with pytest.raises(ModelError, match=r"--base-model-path .* is for an adapter, and .* holds none"):
        find_adapter(base, str(tmp_path / "model"))
    with pytest.raises(ModelError, match="which is no folder"):
        find_adapter(tmp_path / "model", "nowhere")
