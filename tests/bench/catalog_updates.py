"""How soon a change of the catalog is in use while requests come in, and what it costs them.

python tests/bench/catalog_updates.py [--model-path DIR --catalog FILE] [--items N ...] [--kind zipf]

Writes a table of so many items in the tokens of the checkpoint's own SIDs (`--catalog` says which these are;
without the two a random checkpoint with 3 levels of 8,192 codes is made), builds it with `xgr catalog build`,
and serves it from a store with a prefill worker, some decode workers and a router. Requests come at a fixed
rate, first undisturbed, then with one kind of change after the other, a call every `--every` seconds. Prints
tables of the times from a call until all workers use what it led to, of the requests beside it, of memory,
and one JSON line last. `--plot FILE` draws it.

uniform: random SIDs, ids as texts. zipf: popular codes crowd, several items share a SID, ids are numbers.
Memory of a process is its own, as another has no use for it; `mapped` is what it has of the catalog's file,
which lies once in the machine's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from xgr_runtime.catalog import load_catalog
from xgr_runtime.config import ServeConfig
from xgr_runtime.launcher.deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

KINDS = ("hide", "show", "remove", "rank", "add", "share", "push", "rollback")
"""`add`: an item on a SID of its own, `share`: one on a SID that is there."""
CODES, LEVELS, FIRST = 8192, 3, 100  # of the checkpoint that is made
PIECE = 1 << 18  # rows of a table that are made together
KNOWN = 4096  # SIDs that changes and requests name


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model-path", type=Path, default=None)
    flags.add_argument("--catalog", type=Path, default=None, help="of the checkpoint: the tokens of levels")
    flags.add_argument("--items", type=int, nargs="+", default=[10_000, 1_000_000])
    flags.add_argument("--kind", choices=["uniform", "zipf"], default="uniform")
    flags.add_argument("--decode-workers", type=int, default=2)
    flags.add_argument("--rate", type=float, default=5.0, help="requests per second")
    flags.add_argument("--every", type=float, default=0.25, help="seconds between two changes")
    flags.add_argument("--seconds", type=float, default=10.0, help="of each part")
    flags.add_argument("--beam-width", type=int, default=32)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--changes", nargs="+", default=KINDS, choices=KINDS)
    flags.add_argument("--folder", type=Path, default=None, help="for tables and files, which stay there")
    flags.add_argument("--plot", type=Path, default=None, help="file of a picture, such as updates.png")
    args = flags.parse_args()
    if (args.model_path is None) != (args.catalog is None):
        flags.error("--model-path and --catalog come together")
    results = {}
    with folder_of(args) as folder:
        model, tokens = checkpoint(args, folder)
        for items in args.items:
            made = Made(folder, model, tokens, items, args)
            results[str(items)] = found = measure(args, made)
            show(items, found)
    if args.plot is not None:
        draw(results, args.plot)
    print(
        json.dumps({"benchmark": "catalog_updates", "kind": args.kind, "rate": args.rate, "results": results})
    )
    return 0


@contextmanager
def folder_of(args: argparse.Namespace) -> Iterator[Path]:
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        yield args.folder
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def checkpoint(args: argparse.Namespace, folder: Path) -> tuple[Path, list[NDArray[np.int32]]]:
    """The model, and the tokens of each level of its SIDs."""
    if args.model_path is not None:
        books = load_catalog(args.catalog, args.model_path).codebooks
        return args.model_path, [tokens.astype(np.int32) for tokens in books]
    path = folder / "checkpoint"
    if not path.is_dir():
        make_checkpoint(path)
    return path, [np.arange(CODES, dtype=np.int32) + FIRST + level * CODES for level in range(LEVELS)]


def make_checkpoint(path: Path) -> None:
    """A small random one, and a tokenizer with a token for every code."""
    from checkpoints import build
    from tokenizers import Tokenizer, models, pre_tokenizers

    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "max_position_embeddings": 1024}
    build("qwen3", 2, vocab_size=FIRST + LEVELS * CODES, **sizes).save_pretrained(path)
    words = [f"w{number}" for number in range(FIRST)]
    words += [f"<{level}_{code}>" for level in "abc" for code in range(CODES)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))


class Made:
    """Two built files, the second of which has half of the items, and what is known of them."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        tokens: Sequence[NDArray[np.int32]],
        items: int,
        args: argparse.Namespace,
    ) -> None:
        self.model, self.tokens, self.items = model, tokens, items
        self.numbers = args.kind == "zipf"
        self.build: dict[str, float] = {}
        rng = np.random.default_rng(args.seed)
        self.sids = self._sids(rng, KNOWN)
        name = f"{args.kind}-{items}-{args.seed}"
        self.file, self.other = folder / f"{name}.xgr", folder / f"{name}-half.xgr"
        for file, count in ((self.file, items), (self.other, items // 2)):
            if not file.is_file():
                self._build(rng, file, count)

    def item(self, number: int) -> str:
        return str(number) if self.numbers else f"item-{number}"

    def _sids(self, rng: np.random.Generator, count: int) -> NDArray[np.int32]:
        """[count, levels]."""
        levels = []
        for tokens in self.tokens:
            weights = 1 / np.arange(1, len(tokens) + 1) if self.numbers else np.ones(len(tokens))
            places = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count), side="right")
            levels.append(tokens[np.minimum(places, len(tokens) - 1)])
        return np.stack(levels, axis=1)

    def _build(self, rng: np.random.Generator, file: Path, count: int) -> None:
        source = file.with_suffix(".parquet")
        self._write(rng, source, count)
        began = time.monotonic()
        command = [sys.executable, "-m", "xgr_runtime.cli", "catalog", "build", str(source)]
        command += [f"--out={file}", f"--model-path={self.model}", "--sid-format=token_ids"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, "xgr catalog build failed"
        self.build[file.stem] = peak = used.ru_maxrss / 1024
        processor = used.ru_utime + used.ru_stime
        took = time.monotonic() - began
        print(f"{file.stem}: built in {took:.0f} s, {processor:.0f} of a processor, at most {peak:.0f} MiB")
        source.unlink()

    def _write(self, rng: np.random.Generator, path: Path, count: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pa.int64() if self.numbers else pa.string()
        fields = {"item": ids, "sid": pa.list_(pa.int32()), "popularity": pa.float64()}
        order = rng.permutation(count)
        with pq.ParquetWriter(path, pa.schema(fields)) as writer:
            for first in range(0, count, PIECE):
                numbers = order[first : first + PIECE]
                known = numbers < min(KNOWN, count)
                sids = self._sids(rng, len(numbers))
                sids[known] = self.sids[numbers[known]]
                items = numbers if self.numbers else [f"item-{number}" for number in numbers.tolist()]
                ends = np.arange(0, sids.size + 1, sids.shape[1], dtype=np.int32)
                lists = pa.ListArray.from_arrays(ends, pa.array(sids.reshape(-1)))
                columns = [pa.array(items, ids), lists, pa.array(rng.random(len(numbers)))]
                writer.write_table(pa.table(columns, schema=pa.schema(fields)))


def measure(args: argparse.Namespace, made: Made) -> dict[str, Any]:
    found: dict[str, Any] = {"build_peak_mib": made.build, "start_s": {}, "memory": {}, "parts": {}}
    with tempfile.TemporaryDirectory(dir=made.file.parent) as folder:
        store = Path(folder) / "store"
        config = ServeConfig(
            model_path=str(made.model),
            catalog=str(made.file),
            catalog_store=str(store),
            decode_workers=args.decode_workers,
            threads=1,
            kv_bytes=64 << 20,
            port=0,
            log_level="WARNING",
            catalog_patience=60.0,
            timeout_ms=120_000,
        )
        for start in ("file", "store"):  # an empty store takes the file in
            began = time.monotonic()
            with Deployment(config) as deployment:
                found["start_s"][start] = round(time.monotonic() - began, 1)
                if start == "store":
                    parts(args, made, store, deployment, found)
    return found


def parts(
    args: argparse.Namespace, made: Made, store: Path, deployment: Deployment, found: dict[str, Any]
) -> None:
    names = ["router", *(f"decode-{number}" for number in range(args.decode_workers))]
    pids = {name: pid for name in names if (pid := deployment.pid(name)) is not None}
    os.link(made.other, store / made.other.name)
    changes = Changes(deployment.url, made, args.seed)
    load(args, deployment.url, made, 3.0, None)  # warm
    found["memory"]["start"] = memory(pids)
    for kind in ("none", *args.changes):
        make = None if kind == "none" else lambda kind=kind: changes.make(kind)
        with Watch(pids) as watch:
            found["parts"][kind] = load(args, deployment.url, made, args.seconds, make)
        found["memory"][kind] = watch.most


def memory(pids: dict[str, int]) -> dict[str, dict[str, int]]:
    """MiB of each process: its own, and what it has mapped of files and sealed memory."""
    found = {}
    for name, pid in pids.items():
        lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        sizes = {words[0]: int(words[1]) >> 10 for words in lines if words[0].startswith("Rss")}
        found[name] = {"own": sizes["RssAnon:"], "mapped": sizes["RssFile:"] + sizes["RssShmem:"]}
    return found


class Watch:
    """The most memory that each process has while the block lasts."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.most = memory(pids)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for name, now in memory(self._pids).items():
                for part, size in now.items():
                    self.most[name][part] = max(self.most[name][part], size)


class Changes:
    """Calls that change the catalog, one kind at a time."""

    def __init__(self, url: str, made: Made, seed: int) -> None:
        self.client = httpx.Client(base_url=url, timeout=600.0)
        self.made = made
        self.draw = random.Random(seed)
        self.hidden: list[str] = []
        self.number = 0

    def make(self, kind: str) -> float:
        """The milliseconds until the change was in use, as the answer says."""
        self.number += 1
        if kind == "push":
            response = self.client.put("/catalog", json={"path": self.made.other.name})
        elif kind == "rollback":
            response = self.client.post("/catalog/rollback", json={})
        else:
            response = self.client.post("/catalog/items", json=self.batch(kind))
        assert response.status_code == 200, response.text
        return float(response.json()["visible_ms"])

    def batch(self, kind: str) -> dict[str, Any]:
        name = self.made.item(self.draw.randrange(self.made.items))
        if kind == "hide":
            self.hidden.append(name)
        elif kind == "show" and self.hidden:
            name = self.hidden.pop()
        if kind == "rank":
            return {"rank": {name: self.draw.random()}}
        if kind in ("add", "share"):
            sid = [self.draw.choice(tokens.tolist()) for tokens in self.made.tokens]
            if kind == "share":
                sid = self.made.sids[self.draw.randrange(min(KNOWN, self.made.items))].tolist()
            return {"add": [{"item": f"new-{self.number}", "sid": sid}]}
        return {kind: [name]}


def load(
    args: argparse.Namespace,
    url: str,
    made: Made,
    seconds: float,
    change: Callable[[], float] | None,
) -> dict[str, Any]:
    """Requests at the rate for so long, and changes beside them."""
    end, draw = time.monotonic() + seconds, random.Random(args.seed)
    latencies: list[float] = []
    failed: list[str] = []
    visible: list[float] = []

    def ask(history: list[str]) -> None:
        began = time.monotonic()
        body = {"history": history, "sampling_params": {"beam_width": args.beam_width}}
        response = client.post("/generate", json=body | {"unknown_history": "drop"})
        latencies.append(1000 * (time.monotonic() - began))
        if response.status_code != 200:
            failed.append(response.text)

    def ask_on() -> None:
        due, threads = time.monotonic(), []
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            history = [made.item(draw.randrange(made.items // 2)) for _ in range(10)]
            threads.append(threading.Thread(target=ask, args=(history,)))
            threads[-1].start()
            due += draw.expovariate(args.rate)
        for thread in threads:
            thread.join()

    with httpx.Client(base_url=url, timeout=120.0) as client:
        asking = threading.Thread(target=ask_on)
        asking.start()
        while change is not None and time.monotonic() < end:
            began = time.monotonic()
            visible.append(change())
            time.sleep(max(0.0, args.every - (time.monotonic() - began)))
        asking.join()
    return {
        "requests": len(latencies),
        "failed": len(failed),
        "first_failure": failed[0][:300] if failed else "",
        "request_p50_ms": percentile(latencies, 50),
        "request_p99_ms": percentile(latencies, 99),
        "changes": len(visible),
        "visible_p50_ms": percentile(visible, 50),
        "visible_p99_ms": percentile(visible, 99),
    }


def percentile(values: list[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 2) if values else None


def show(items: int, found: dict[str, Any]) -> None:
    print(
        f"\n{items:,} items: started from the file in {found['start_s']['file']} s, from the store in",
        end=" ",
    )
    print(f"{found['start_s']['store']} s; milliseconds from call to visible, and of requests beside")
    print(f"{'change':10}{'changes':>9}{'p50':>9}{'p99':>9}{'requests':>10}{'p50':>9}{'p99':>9}{'failed':>8}")
    for kind, row in found["parts"].items():
        shown = [row[name] for name in ("changes", "visible_p50_ms", "visible_p99_ms", "requests")]
        shown += [row[name] for name in ("request_p50_ms", "request_p99_ms", "failed")]
        widths = (9, 9, 9, 10, 9, 9, 8)
        cells = ["" if value is None else str(value) for value in shown]
        print(f"{kind:10}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    print("\nMiB at most: own, and mapped")
    names = found["memory"]["start"]
    print(f"{'':10}" + "".join(f"{name:>16}" for name in names))
    for kind, sizes in found["memory"].items():
        cells = [f"{sizes[name]['own']}, {sizes[name]['mapped']}" for name in names]
        print(f"{kind:10}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def draw(results: dict[str, Any], path: Path) -> None:
    """Median and p99 by kind, for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    kinds = [kind for kind in KINDS if all(kind in found["parts"] for found in results.values())]
    for at, (items, found) in enumerate(results.items()):
        places = np.arange(len(kinds)) + 0.4 * at
        p99 = [found["parts"][kind]["visible_p99_ms"] or 0 for kind in kinds]
        p50 = [found["parts"][kind]["visible_p50_ms"] or 0 for kind in kinds]
        axes.bar(places, p99, 0.35, alpha=0.4, color=f"C{at}", label=f"{int(items):,} items, p99")
        axes.bar(places, p50, 0.35, color=f"C{at}", label=f"{int(items):,} items, median")
    axes.set_xticks(np.arange(len(kinds)) + 0.2, kinds)
    axes.set_yscale("log")
    axes.set_ylabel("ms from call to visible")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
