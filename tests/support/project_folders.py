"""Folders as training scripts of public projects leave them: tiny ones of our making, and those of kits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CODES = 8  # of each level
END = "<|end|>"
MARKS = ("<|im_start|>", "<|im_end|>", "<|sid_begin|>", "<|sid_end|>")
CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
ITEMS: dict[str, tuple[int, ...]] = {
    **{str(n): (n % CODES, n * 3 % CODES, (n + n // CODES) % CODES) for n in range(20)},
    "20": (4, 4, 4),  # which is item 4's
}


def checkpoint(folder: Path, tokens: Sequence[str], **config: Any) -> Path:
    """config.json, a tokenizer of bytes with `tokens` added and an end token, and a file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["the user saw"] * 9, trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet)
    )
    tokenizer.add_special_tokens([END])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "chat_template": CHAT}))
    plain = {"model_type": "qwen2", "vocab_size": 512, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(plain | config))
    save_file({"weight": np.zeros(1, np.float32)}, folder / "model.safetensors")
    return folder


def letters(codes: Sequence[int]) -> list[str]:
    """<a_1>, <b_2>, <c_3>: how most projects spell codes."""
    return [f"<{letter}_{code}>" for letter, code in zip("abcdefgh", codes, strict=False)]


def all_letters(depth: int = 3, form: str = "<{letter}_{code}>") -> list[str]:
    """Every token of such SIDs."""
    return [form.format(letter=letter, code=code) for letter in "abcdefgh"[:depth] for code in range(CODES)]


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False))
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def minionerec(root: Path) -> Path:
    """data/Amazon/{index,info,test} and output with an older checkpoint and the final one."""
    data = root / "data" / "Amazon"
    write_json(data / "index" / "Toys.index.json", {item: letters(codes) for item, codes in ITEMS.items()})
    (data / "info").mkdir()
    lines = [f"{''.join(letters(codes))}\tTitle {item}\t{item}\n" for item, codes in ITEMS.items()]
    (data / "info" / "Toys_5_2016-10-2018-11.txt").write_text("".join(lines))
    (data / "test").mkdir()
    history = ["3", "5"]
    sids = ["".join(letters(ITEMS[item])) for item in history]
    (data / "test" / "Toys_5_2016-10-2018-11.csv").write_text(
        f'user_id,history_item_id,history_item_sid\nu1,"{[3, 5]}","{sids}"\n'
    )
    checkpoint(root / "output" / "checkpoint-7", all_letters())
    checkpoint(root / "output" / "final_checkpoint", all_letters())
    return root


def lcrec(root: Path) -> Path:
    """data/Toys with index, interactions and items, and a run of two checkpoints."""
    data = root / "data" / "Toys"
    write_json(data / "Toys.index.json", {item: letters(codes) for item, codes in ITEMS.items()})
    write_json(data / "Toys.inter.json", {"0": [3, 5, 7], "1": [1, 2]})
    write_json(
        data / "Toys.item.json", {item: {"title": f"Title {item}", "description": ""} for item in ITEMS}
    )
    for step in (9, 10):
        checkpoint(root / "ckpt" / f"checkpoint-{step}", all_letters(), model_type="llama")
    return root


def letter(root: Path) -> Path:
    """LC-Rec's data with a T5."""
    lcrec(root)
    for step in (9, 10):
        checkpoint(
            root / "ckpt" / f"checkpoint-{step}",
            all_letters(),
            model_type="t5",
            is_encoder_decoder=True,
            architectures=["T5ForConditionalGeneration"],
        )
    return root


def think(root: Path) -> Path:
    """Toys.pretrain.json, a pickled table, and a checkpoint."""

    def sid(codes: Sequence[int]) -> str:
        spelt = "".join(f"<s_{letter}_{code}>" for letter, code in zip("abc", codes, strict=True))
        return f"<|sid_begin|>{spelt}<|sid_end|>"

    rows = {
        item: {"sid": sid(codes), "title": f"Title {item}", "categories": "Toys"}
        for item, codes in ITEMS.items()
    }
    write_json(root / "data" / "Toys.pretrain.json", rows)
    (root / "test").mkdir()
    (root / "test" / "global_trie.pkl").write_bytes(b"\x80\x04N.")
    checkpoint(root / "results", [*all_letters(form="<s_{letter}_{code}>"), *MARKS])
    return root


def openonerec(root: Path) -> Path:
    """A table of codes, sid2pid.json with counts, messages of two users, and a checkpoint."""
    pids = {900 + int(item): codes for item, codes in ITEMS.items()}
    data = root / "raw_data"
    write_table(data / "video_ad_pid2sid.parquet", [{"pid": pid, "sid": sid} for pid, sid in pids.items()])
    packed: dict[str, list[dict[str, int]]] = {}
    for pid, (a, b, c) in pids.items():
        entry = {"pid": pid, "count": pid % 7, "count_after_downsample": 1000 - pid}
        packed.setdefault(str((a * 8192 + b) * 8192 + c), []).append(entry)
    write_json(data / "benchmark_data" / "sid2pid.json", packed)

    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    def sid(pid: int) -> str:
        spelt = "".join(f"<s_{letter}_{code}>" for letter, code in zip("abc", pids[pid], strict=True))
        return f"<|sid_begin|>{spelt}<|sid_end|>"

    rows = [
        {
            "messages": json.dumps(
                [message("system", "You know {all}."), message("user", f"Saw: {seen}\nNext?")]
            )
        }
        for seen in (sid(903) + sid(905), sid(907))
    ]
    write_table(data / "benchmark_data" / "video" / "video_test.parquet", rows)
    checkpoint(root / "model", [*all_letters(form="<s_{letter}_{code}>"), *MARKS])
    write_json(root / "model" / "generation_config.json", {"do_sample": True, "top_k": 20})
    return root


def genrec(root: Path) -> Path:
    """data/Toys of the preparation, titles beside, saves/ with a checkpoint."""
    data = root / "data" / "Toys"
    write_json(data / "id2sid.json", {item: letters(codes) for item, codes in ITEMS.items()})
    write_json(data / "new_tokens.json", all_letters())
    seen = ", ".join("".join(letters(ITEMS[item])) for item in ("3", "5", "7"))
    record = {
        "system": "Answer.",
        "instruction": "Which is next?",
        "input": f"After {seen} comes",
        "output": "x",
    }
    write_json(data / "sft" / "test.json", [record])
    write_json(root / "data" / "Toys.item.json", {item: {"title": f"Title {item}"} for item in ITEMS})
    checkpoint(root / "saves" / "qwen2.5-0.5b" / "full" / "toys-sft", all_letters())
    return root


def unigenrec(root: Path) -> Path:
    """A codebook as text with its mapping, and a checkpoint of the decoder."""
    books = root / "datasets" / "Toys" / "codebooks"
    texts = {
        item: " ".join(f"<L{n}_{code}>" for n, code in enumerate(codes)) for item, codes in ITEMS.items()
    }
    write_json(books / "Toys.text.rqvae.codebook.json", texts)
    lines = [
        json.dumps({"row_index": int(item), "item_id": int(item), "raw_item_id": f"B{item}"})
        for item in ITEMS
    ]
    (books / "Toys.text.rqvae.mapping.jsonl").write_text("\n".join(lines))
    np.save(books / "Toys.text.rqvae.npy", np.array([*ITEMS.values()]))
    checkpoint(root / "ckpt", [f"<SID_{level}_{code}>" for level in range(3) for code in range(CODES)])
    return root


def plain(root: Path) -> Path:
    """An index and a checkpoint, nothing else."""
    write_json(root / "index.json", {item: letters(codes) for item, codes in ITEMS.items()})
    checkpoint(root / "model", all_letters())
    return root


PROJECTS: dict[str, Callable[[Path], Path]] = {
    "minionerec": minionerec,
    "lcrec": lcrec,
    "onerec-think": think,
    "openonerec": openonerec,
    "genrec": genrec,
    "unigenrec": unigenrec,
    "plain": plain,
}


def unpack(kits: Path, kit: str, out: Path) -> Path:
    """The checkpoint folders of a kit."""
    command = [sys.executable, str(kits / "unpack.py"), str(kits / kit), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def of_kit(kits: Path, kit: str, unpacked: Path, root: Path, lora: bool = False) -> Path:
    """The folder that the project of a kit leaves behind: its data and its checkpoint, as links.

    `lora`: an adapter and what it was trained on, as LC-Rec's other script leaves them.
    """
    data = kits / kit / "data"
    places = {
        "minionerec": [
            ("Industrial_and_Scientific.index.json", "data/Amazon/index"),
            ("Industrial_and_Scientific_5_2016-10-2018-11.txt", "data/Amazon/info"),
            ("test_30.csv", "data/Amazon/test"),
        ],
        "lcrec": [("Instruments", "data")],
        "onerec-think": [(name, "data") for name in ("Games.pretrain.json", "sequential_data_processed.txt")],
        "openonerec": [("video_ad_pid2sid.parquet", "raw_data"), ("benchmark_data", "raw_data")],
    }
    model = {"minionerec": "output/final_checkpoint", "lcrec": "ckpt", "onerec-think": "results"}
    for name, place in places[kit]:
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / name).symlink_to(data / name)
    folder = root / model.get(kit, "model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(unpacked / ("adapter" if lora else "model"))
    if lora:
        (root / "base").symlink_to(unpacked / "base")
    return root
