"""`python store_crashes.py FOLDER SEED SECONDS`: writers of one store that are killed at any moment.

After each kill the store must hold all that was acknowledged, and of what was under way all or nothing. The
last line says how many were killed, and how many steps were acknowledged.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import sys
import time
from pathlib import Path

import msgspec
from small_catalogs import example
from store_oracle import StoreOracle, StoreStep

from xgr_runtime.catalog.store import Store

CATALOGS = [example(depth, items=40, titles=False) for depth in range(1, 6)]
LONGEST = 0.08  # seconds until a kill
FILTERS = ("in_stock", "campaign")


def step_of(store: Store, draw: random.Random, number: int) -> StoreStep:
    """The next one; most are edits, as they are where catalogs change."""
    kinds = ["append"] * 6 + ["push", "compact", "rebase", "switch", "filter", "forget"]
    kind = draw.choice(kinds) if store.current else "push"
    version = f"{os.getpid()}-{number}-{draw.getrandbits(64):x}"
    catalog = draw.randrange(len(CATALOGS))
    if kind == "append":
        return StoreStep("append", version, draw.randbytes(draw.randrange(2000)), draw.choice(["", version]))
    if kind == "compact":
        return StoreStep("append", CATALOGS[catalog].version, draw.randbytes(8))
    if kind in ("push", "rebase"):
        known = store.keeps(CATALOGS[catalog].version)
        return StoreStep(kind if known else "push", CATALOGS[catalog].version, name=str(catalog))
    if kind == "switch":
        return StoreStep("switch", draw.choice([one.version for one in store.history(30) if one.kept]))
    name = draw.choice(FILTERS)
    kind = kind if name in store.filters() else "filter"
    return StoreStep(kind, version if kind == "filter" else "", name=name)


def take(store: Store, step: StoreStep) -> None:
    if step.kind == "append":
        assert store.current is not None
        store.append(store.current, step.version, step.batch, key=step.key)
    elif step.kind == "push":
        store.push(CATALOGS[int(step.name)])
    elif step.kind == "rebase":
        store.rebase(CATALOGS[int(step.name)])
    elif step.kind == "switch":
        store.switch(step.version)
    else:
        store.set_filter(step.name, step.version if step.kind == "filter" else None)


def write(folder: Path, draw: random.Random, told: int) -> None:
    """Steps without end: each is told before it is taken, and acknowledged behind it."""
    with Store(folder, keep=2) as store:
        number = 0
        while True:
            number += 1
            with store.writing():
                step = step_of(store, draw, number)
                os.write(told, msgspec.json.encode(step) + b"\n")
                take(store, step)
                os.write(told, b"acknowledged\n")


def killed_writer(folder: Path, draw: random.Random) -> tuple[list[StoreStep], StoreStep | None]:
    """What one writer did until it was killed: acknowledged steps, and the one that was under way."""
    reading, telling = os.pipe()
    seed = draw.getrandbits(32)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            write(folder, random.Random(seed), telling)
        os._exit(1)
    os.close(telling)
    time.sleep(draw.random() * LONGEST)
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as stream:
        lines = stream.read().split(b"\n")[:-1]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer ended by itself"
    steps = [msgspec.json.decode(line, type=StoreStep) for line in lines[::2]]
    return (steps, None) if len(lines) % 2 == 0 else (steps[:-1], steps[-1])


def main(folder: Path, seed: int, seconds: float) -> None:
    draw, oracle = random.Random(seed), StoreOracle()
    end, kills, acknowledged = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        steps, open_step = killed_writer(folder, draw)
        for step in steps:
            oracle.apply(step)
        with Store(folder, keep=2) as store:
            if open_step is not None:
                with_it = copy.deepcopy(oracle)
                with_it.apply(open_step)
                if oracle.differs(store):
                    oracle = with_it
            problem = oracle.differs(store)
            assert not problem, f"after {kills} kills, {open_step} under way: another {problem}"
            left = {path.name for path in (folder / "versions").iterdir()}
            assert left == {f"{version}.xgr" for version in store.files}
        kills, acknowledged = kills + 1, acknowledged + len(steps)
    print(kills, acknowledged)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
