"""Turns between real processes: one at a time, nobody starves, and nobody waits for the dead."""

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from xgr_runtime.errors import ConfigError
from xgr_runtime.worker.device_turns import (
    DECODE_SIDE,
    KEEP_EVERY,
    OVERDUE,
    PATIENCE,
    PREFILL_SIDE,
    FileTurns,
    NoTurns,
    turns_of,
)

# Answers each line: take, give, forget, or play N (take N turns as fast as they come, 1 ms each).
PLAYER = """
import sys, time
from pathlib import Path
from xgr_runtime.worker.device_turns import FileTurns
turns = FileTurns(Path(sys.argv[1]), int(sys.argv[2]))
log = Path(sys.argv[1] + ".log")
print("here", flush=True)
for line in sys.stdin:
    command, _, count = line.strip().partition(" ")
    if command == "take":
        print(turns.try_take(), flush=True)
    elif command == "play":
        for _ in range(int(count)):
            while not turns.try_take():
                time.sleep(0.0005)
            with log.open("a") as stream:
                stream.write(f"+{sys.argv[2]}\\n")
                stream.flush()
                time.sleep(0.001)
                stream.write(f"-{sys.argv[2]}\\n")
            turns.give()
        turns.forget()
        print("played", flush=True)
    else:
        getattr(turns, command)()
        print("done", flush=True)
"""


class Player:
    """Another process in the game."""

    def __init__(self, path: Path, side: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLAYER, str(path), str(side)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear() == "here"

    def begin(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, command: str) -> str:
        self.begin(command)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turns"


@pytest.fixture
def other(path: Path) -> Iterator[Player]:
    made = Player(path, DECODE_SIDE)
    yield made
    made.kill()


def test_one_at_a_time(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE)
    assert ours.try_take() and ours.try_take()
    assert other.say("take") == "False"
    ours.give()
    assert other.say("take") == "True" and not ours.try_take()
    other.say("give")
    other.say("give")
    assert ours.try_take()


def test_who_is_about_to_ask_waits_already(path: Path) -> None:
    ours, theirs = FileTurns(path, PREFILL_SIDE), FileTurns(path, DECODE_SIDE)
    assert theirs.try_take() and not theirs.wanted()
    ours.want()
    assert theirs.wanted() and theirs.try_take(), "to want it is not to have it"
    theirs.give()
    assert ours.try_take() and not theirs.wanted(), "who has it waits no more"
    ours.want()
    assert not theirs.wanted() and not theirs.try_take()


def test_a_holder_sees_that_another_waits(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE)
    assert ours.try_take() and not ours.wanted()
    other.say("take")
    assert ours.wanted()
    other.say("forget")
    assert not ours.wanted()


def test_whoever_had_it_last_leaves_it_to_one_who_waits(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE, clock=lambda: 1.0)
    assert ours.try_take() and other.say("take") == "False"
    ours.give()
    assert not ours.try_take(), "the other asked meanwhile"
    assert other.say("take") == "True"
    other.say("give")
    assert ours.try_take(), "we waited"


def test_a_waiter_is_woken_when_its_turn_is_given(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE)
    assert other.say("take") == "True" and not ours.try_take()
    assert not rings(ours, 0.0)
    other.say("give")
    assert rings(ours, 10.0) and ours.try_take() and not rings(ours, 0.0)
    ours.give()
    other.say("take")
    other.say("give")
    assert not rings(ours, 0.0), "nobody waited"


def test_a_turn_that_is_given_just_as_another_begins_to_wait_is_taken(path: Path) -> None:
    giver, taker = FileTurns(path, PREFILL_SIDE), FileTurns(path, DECODE_SIDE)
    assert giver.try_take()
    inner = taker._wait

    def waits(value: bool) -> None:
        if value:
            giver.give()  # before it can see us wait
        inner(value)

    taker._wait = waits  # type: ignore[assignment, method-assign]
    assert taker.try_take()


def rings(turns: FileTurns, seconds: float) -> bool:
    return bool(select.select([turns.wakeup], [], [], seconds)[0])  # type: ignore[type-var]


def test_alone_one_takes_turn_after_turn(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE, clock=lambda: 1.0)
    for _ in range(3):
        assert ours.try_take()
        ours.give()


@pytest.mark.parametrize("how", ["forget", "die"])
def test_nobody_waits_for_one_who_waits_no_more(path: Path, other: Player, how: str) -> None:
    ours = FileTurns(path, PREFILL_SIDE, clock=lambda: 1.0)
    assert ours.try_take() and other.say("take") == "False"
    if how == "forget":
        other.say("forget")
    else:
        other.kill()
    ours.give()
    assert ours.try_take()


def test_a_player_that_stops_while_it_waits_costs_little(path: Path, other: Player) -> None:
    now = [1.0]
    ours = FileTurns(path, PREFILL_SIDE, clock=lambda: now[0])
    assert ours.try_take() and other.say("take") == "False"
    other.process.send_signal(signal.SIGSTOP)
    ours.give()
    assert not ours.try_take()
    now[0] += PATIENCE
    assert ours.try_take()


def test_a_killed_holder_frees_its_turn(path: Path, other: Player) -> None:
    ours = FileTurns(path, PREFILL_SIDE)
    assert other.say("take") == "True" and not ours.try_take()
    other.process.send_signal(signal.SIGSTOP)
    assert not ours.try_take(), "its work may still run"
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    assert ours.try_take()


def test_nobody_starves(path: Path) -> None:
    """Both play as fast as they can: turns never overlap, and each waits for one of the other's at most."""
    players = [Player(path, side) for side in (PREFILL_SIDE, DECODE_SIDE)]
    for player in players:
        player.begin("play 60")
    assert [player.hear() for player in players] == ["played"] * 2
    lines = Path(f"{path}.log").read_text().splitlines()
    turns = [line[1:] for line in lines[::2]]
    assert lines == [sign + side for side in turns for sign in "+-"], "one at a time"
    contested = turns[: len(turns) // 2]  # later some may be through with theirs
    twice = sum(a == b for a, b in pairwise(contested))
    assert twice < len(contested) / 4, "nobody plays alone while others wait"
    for player in players:
        player.kill()


def test_without_a_file_there_is_no_game(path: Path) -> None:
    assert isinstance(turns_of("", 0, "cuda"), NoTurns) and turns_of("", 0, "cuda").try_take()
    assert isinstance(turns_of(str(path), 0, "cuda"), FileTurns)


@pytest.mark.parametrize(("device", "goes_on"), [("cpu", True), ("cuda", False)])
def test_cores_of_a_holder_that_stopped_are_used_in_the_end(
    path: Path, other: Player, device: str, goes_on: bool
) -> None:
    now = [1.0]
    ours = turns_of(str(path), PREFILL_SIDE, device)
    assert isinstance(ours, FileTurns)
    ours._clock = lambda: now[0]
    assert other.say("take") == "True"
    other.process.send_signal(signal.SIGSTOP)
    assert not ours.try_take()
    now[0] += OVERDUE
    assert ours.try_take() == goes_on and not ours.holds
    ours.give()
    os.kill(other.process.pid, signal.SIGKILL)
    other.process.wait()
    assert ours.try_take() and ours.holds


def test_a_closed_file_of_the_same_name_changes_nothing(path: Path, other: Player) -> None:
    """As with the locks of a process, of which closing any descriptor of the file would drop all."""
    ours = FileTurns(path, PREFILL_SIDE)
    assert ours.try_take()
    path.open().close()
    assert other.say("take") == "False"


def test_a_full_disk_takes_no_turn_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    turns = FileTurns(tmp_path / "turns", PREFILL_SIDE)
    monkeypatch.setattr(os, "pwrite", full)
    assert turns.try_take() and turns.holds
    turns.give()
    turns.close()


def test_a_file_that_cannot_be_used_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--turns-file"):
        turns_of(str(tmp_path / "none" / "turns"), PREFILL_SIDE, "cpu")


@pytest.mark.parametrize("cleaned", ["all", "the-turn", "wakeups", "the-folder"])
def test_players_whose_files_are_removed_meet_again(cleaned: str, tmp_path: Path) -> None:
    """Each looks by itself; a third, started later, finds the same files."""
    path = tmp_path / "run" / "turns"
    path.parent.mkdir()
    now = [0.0]
    players = [FileTurns(path, side, clock=lambda: now[0]) for side in (PREFILL_SIDE, DECODE_SIDE)]
    wakeups = [player.wakeup for player in players]
    assert (not players[0].wanted() and not players[1].try_take()) or players[1].holds
    for player in players:
        player.give()
        player.forget()
    for file in list(path.parent.iterdir()):
        if cleaned in ("all", "the-folder") or (file == path) == (cleaned == "the-turn"):
            file.unlink()
    if cleaned == "the-folder":
        path.parent.rmdir()
        now[0] += 2 * KEEP_EVERY
        assert players[0].try_take(), "without a folder all goes on as it was"
        players[0].give()
        path.parent.mkdir()
    now[0] += 2 * KEEP_EVERY
    for player in players:  # each has a turn and sees what is missing
        while not player.try_take():
            now[0] += PATIENCE
        player.give()
    now[0] += 2 * PATIENCE
    assert players[0].try_take() and not players[1].try_take(), "one at a time"
    assert [player.wakeup for player in players] == wakeups
    players[0].give()
    assert rings(players[1], 5.0) and players[1].try_take()
    players[1].give()
    later = FileTurns(path, PREFILL_SIDE, clock=lambda: now[0])
    now[0] += 2 * PATIENCE
    assert players[1].try_take() and not later.try_take()
    for player in (*players, later):
        player.close()
