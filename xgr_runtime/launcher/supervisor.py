"""Keeps a launcher's children alive: start in groups, restart with backoff, stop in the opposite order.

What to do when is decided by functions of a `State` and the time; `Supervisor` carries it out on processes.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from xgr_runtime.errors import StartupError
from xgr_runtime.launcher.child import Child, ChildFailed
from xgr_runtime.launcher.memory_kills import MemoryKills
from xgr_runtime.launcher.program import Program
from xgr_runtime.launcher.template import Starter

log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.2  # seconds before the first restart; doubles with every further failure
LONGEST_BACKOFF = 10.0
HEALTHY_AFTER = 60.0  # seconds of service that make up for earlier failures
LOOP_FAILURES = 5  # failures in a row from which we speak of a crash loop
FOUND = 2.0  # seconds in which whoever is ready is found by those who work with it
PULSE = 0.05  # seconds between looks at the children
START_PULSE = 0.01  # the same while they start for the first time
CHORE_EVERY = 1.0  # seconds
STUCK_ROOM = 5.0  # seconds that a stuck child gets to end itself, with its stacks in the log

# What each child said when it became ready -> why the whole does not serve yet.
Missing = Callable[[Mapping[str, dict[str, Any]]], str]


class Phase(Enum):
    """Where a child is in its life; it ends only with the supervisor."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to restart"


@dataclass(frozen=True)
class State:
    """What decides about a child: its phase, since when, and its failures in a row."""

    phase: Phase
    since: float
    failures: int = 0


def backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row (1 or more)."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures - 1, 32))


def moved(state: State, phase: Phase, now: float) -> State:
    """The state after a start (STARTING), the ready line (READY) or an end (WAITING)."""
    failures = state.failures
    if phase is Phase.WAITING:
        recovered = state.phase is Phase.READY and now - state.since >= HEALTHY_AFTER
        failures = 1 if recovered else failures + 1
    return replace(state, phase=phase, since=now, failures=failures)


def may_restart(state: State, now: float) -> bool:
    """Whether a child that ended has waited long enough."""
    return state.phase is Phase.WAITING and now >= state.since + backoff(state.failures)


def overdue(state: State, now: float, start_timeout: float) -> bool:
    """Whether a child has been starting for too long."""
    return state.phase is Phase.STARTING and now >= state.since + start_timeout


def stuck(beat: float, now: float, stuck_timeout: float) -> bool:
    """Whether a ready child that told of a turn at `beat` has been silent for too long; 0: never."""
    return stuck_timeout > 0 and now >= beat + stuck_timeout + STUCK_ROOM


def in_need(state: State, now: float) -> bool:
    """Whether a child starts, or has to be found by others yet."""
    return state.phase is Phase.STARTING or (state.phase is Phase.READY and now < state.since + FOUND)


def parts_of_start(parts: Mapping[str, float]) -> str:
    """Seconds in words, in all and of each part."""
    told = ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items())
    return f"{sum(parts.values()):.1f} s ({told})" if told else ""


@dataclass(frozen=True)
class StartGroup:
    """Children that start together once the group before is ready, and stop together before it stops.

    With `places` they are a reserve: they start when all serves, and once all of them are ready they take one
    of the places together, in its order, where a child that was ready is lost there.
    """

    programs: Sequence[Program]
    grace: float  # seconds between SIGTERM and SIGKILL
    places: Sequence[Sequence[Program]] = ()

    def place_of(self, name: str) -> Sequence[Program]:
        """The place that the child `name` is part of, empty where there is none."""
        return next((place for place in self.places if name in [program.name for program in place]), ())


class StopRequest:
    """How a supervisor is asked to end: from a signal handler, from any thread, also before it runs.

    Plain attributes, looked at once per pulse. A handler that sets a `threading.Event` deadlocks when it
    interrupts the very wait for it, which holds the same lock.
    """

    def __init__(self) -> None:
        self.drain = False
        self.kill = False

    def ask(self) -> None:
        """Drain and stop; asked again: kill at once."""
        self.kill = self.drain
        self.drain = True


class Supervisor:
    """Runs the groups' children until asked to stop; all of it in the thread that calls `run`."""

    def __init__(
        self,
        groups: Sequence[StartGroup],
        start_timeout: float,
        stop: StopRequest,
        stuck_timeout: float = 0.0,
        inherited: Sequence[int] = (),
        chore: Callable[[], None] = lambda: None,
        starter: Starter | None = None,
    ) -> None:
        """`inherited`: descriptors that every child has too. `starter`: see there; it has begun.

        `chore` is done now and then, and before a child is started again. It raises `StartupError` where the
        whole cannot go on: then all drain and stop, and `run` raises it.
        """
        self.groups = groups
        self.start_timeout = start_timeout
        self.stuck_timeout = stuck_timeout
        self.restarts = 0
        self.programs = {program.name: program for group in groups for program in group.programs}
        assert len(self.programs) == sum(len(group.programs) for group in groups), "names are unique"
        self._children: dict[str, Child] = {}
        self._states: dict[str, State] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._stop = stop
        self._kills = MemoryKills()
        self._beats: dict[str, float] = {}  # when each child told of a turn
        self._looked = 0.0  # at the children, last
        self._inherited = inherited
        self._chore = chore
        self._starter = starter or Starter()
        self._next_chore = 0.0

    def run(self, missing: Missing) -> None:
        """Start everything and keep it alive until asked to stop.

        `missing` is given what each child said when it became ready, and is asked until it returns an empty
        string: until then the whole does not serve yet, for that reason. Raises `StartupError` when the
        first start fails or takes longer than `start_timeout`. No child is left in any case.
        """
        deadline = time.monotonic() + self.start_timeout
        try:
            if not self._stop.drain and self._start_all(deadline):
                self._keep_alive(deadline, missing)
            self._stop_all()
        finally:
            self._kill_all()

    def pid(self, name: str) -> int | None:
        """The process of that child, or None while it has none."""
        child = self._children.get(name)
        return child.pid if child else None

    def _keep_alive(self, deadline: float, missing: Missing) -> None:
        complete = False
        while not self._stop.drain:
            time.sleep(PULSE)
            self._do_chore()
            self._starter.look()
            self._look_after_all()
            if complete:
                continue
            reason = missing(self._info)
            complete = not reason
            if complete:
                self._start_reserves()
            if reason and time.monotonic() >= deadline:
                raise StartupError(f"not serving after {self.start_timeout:g} s: {reason}")

    def _start_all(self, deadline: float) -> bool:
        """Whether all became ready; False when asked to stop before. Raises `StartupError`."""
        while not self._starter.settled() and time.monotonic() < deadline:
            if not self._pause():
                return False
        for group in [group for group in self.groups if not group.places]:
            for program in group.programs:
                self._start(program.name)
            names = [program.name for program in group.programs]
            while not all([self._is_ready(name) for name in names]):  # a list: look at every child each time
                if not self._pause():
                    return False
                if time.monotonic() >= deadline:
                    raise self._too_late(names)
        return True

    def _pause(self) -> bool:
        """Until the next look at children that start; False when asked to stop. Raises `StartupError`."""
        time.sleep(START_PULSE)
        self._do_chore()
        return not self._stop.drain

    def _do_chore(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if now < self._next_chore and not at_once:
            return
        self._next_chore = now + CHORE_EVERY
        try:
            self._chore()
        except StartupError as error:
            log.error("%s; stopping", error)
            self._stop_all()
            raise

    def _too_late(self, names: Sequence[str]) -> StartupError:
        late = ", ".join(name for name in names if self._states[name].phase is not Phase.READY)
        return StartupError(f"{late} not ready after {self.start_timeout:g} s: raise --start-timeout")

    def _look_after_all(self) -> None:
        now = time.monotonic()
        if now > self._looked + STUCK_ROOM / 2:  # we were stopped ourselves, and perhaps they with us
            self._beats = dict.fromkeys(self._beats, now)
        self._looked = now
        for name in list(self._states):
            state = self._states[name]  # of now: who is lost may take others along
            if may_restart(state, now):
                if not self._is_needed_more(name):
                    self._restart(name)
            elif overdue(state, now, self.start_timeout):
                self._bury(name, f"was not ready after {self.start_timeout:g} s")
            elif state.phase is not Phase.WAITING:
                self._check(name)

    def _check(self, name: str) -> None:
        """Notice that a child became ready, ended, or makes no turns."""
        try:
            if not self._is_ready(name):
                return
            child, now = self._children[name], time.monotonic()
            if child.poll() is not None:
                self._bury(name, child.ending())
            elif child.beats():
                self._beats[name] = now
            elif stuck(self._beats[name], now, self.stuck_timeout):
                how = "is stopped" if child.is_stopped() else "is stuck"
                self._bury(name, f"{how}, it made no turn for {self.stuck_timeout:g} s")
        except ChildFailed:
            self._bury(name, self._children[name].ending())

    def _is_ready(self, name: str) -> bool:
        """Raises `ChildFailed` for a child that ended before."""
        if self._states[name].phase is Phase.READY:
            return True
        info = self._children[name].check_ready()
        if info is None:
            return False
        self._info[name] = info
        self._beats[name] = time.monotonic()
        self._move(name, Phase.READY)
        took = parts_of_start(info.get("start", {}))
        log.info("%s is ready (pid %d)%s", name, self._children[name].pid, took and f" after {took}")
        return True

    def _start(self, name: str) -> None:
        child = Child(self.programs[name], self._inherited, self._kills, self._starter.start)
        child.start()
        self._children[name] = child
        self._move(name, Phase.STARTING)

    def _restart(self, name: str) -> None:
        self.restarts += 1
        self._do_chore(at_once=True)
        self._try_start(name)

    def _try_start(self, name: str) -> None:
        try:
            self._start(name)
        except StartupError as error:  # no process or no memory left just now
            log.error("%s", error)
            self._move(name, Phase.WAITING)

    def _start_reserves(self) -> None:
        for program in [program for group in self.groups if group.places for program in group.programs]:
            self._try_start(program.name)

    def _bury(self, name: str, ending: str) -> None:
        """Collect a child that ended, or is given up; another takes its place, or it is started again."""
        was_ready = self._states[name].phase is Phase.READY
        self._collect(name)
        if was_ready and self._replace(name, ending):
            return
        self._bury_mates(name)
        failures = self._states[name].failures
        log.error("%s %s; restart in %.1f s", name, ending, backoff(failures))
        if failures >= LOOP_FAILURES:
            log.error(
                "%s is in a crash loop: %d failures in a row, nothing but a fix will help", name, failures
            )

    def _collect(self, name: str) -> None:
        child = self._children.pop(name)
        child.kill()
        child.close()
        self._move(name, Phase.WAITING)

    def _is_needed_more(self, name: str) -> bool:
        """Whether a place that a reserve is for was taken just now: the machine is for that one first.

        So who took a place is ready in it before others publish their memory where it did while it waited.
        """
        for group in self.groups:
            if name in [program.name for program in group.programs]:
                states = [self._states[program.name] for place in group.places for program in place]
                return any(in_need(state, time.monotonic()) for state in states)
        return False

    def _bury_mates(self, name: str) -> None:
        """A reserve of several is one: who is left of it would read the memory of the dead."""
        for group in [group for group in self.groups if group.places]:
            if name in (names := [program.name for program in group.programs]):
                for mate in [mate for mate in names if mate in self._children]:
                    self._collect(mate)

    def _replace(self, name: str, ending: str) -> bool:
        """Put a reserve that is ready into the place of a child that is gone; False where there is none."""
        for group in self.groups:
            place = group.place_of(name)
            if place and all(self._waits(program.name) for program in group.programs):
                names = ", ".join(program.name for program in group.programs)
                log.error("%s %s; taken over by %s", name, ending, names)
                self._take_over(group, place)
                return True
        return False

    def _waits(self, name: str) -> bool:
        """Whether this child of a reserve is there for a place."""
        ready = self._states.get(name, State(Phase.WAITING, 0.0)).phase is Phase.READY
        return ready and self._children[name].poll() is None

    def _take_over(self, group: StartGroup, place: Sequence[Program]) -> None:
        """Whoever else is left of the place goes: its memory is not that of the newcomers."""
        left = [self._children.pop(program.name) for program in place if program.name in self._children]
        for child in left:
            child.strike()
        for waiting, program in zip(group.programs, place, strict=True):
            child = self._children.pop(waiting.name)
            self._move(waiting.name, Phase.WAITING)
            self._children[program.name] = child
            self._move(program.name, Phase.STARTING)
            try:
                child.become(program)
            except OSError:  # it died just now, and is buried with the next look
                log.warning("%s is gone, too", waiting.name)
        for child in left:  # last, as the end of a large process takes a while
            child.kill()
            child.close()

    def _move(self, name: str, phase: Phase) -> None:
        now = time.monotonic()
        self._states[name] = moved(self._states.get(name, State(phase, now)), phase, now)

    def _stop_all(self) -> None:
        """Last group first, each with its time to drain; a child that never became ready has nothing to."""
        for group in reversed(self.groups):
            children = [self._children[p.name] for p in group.programs if p.name in self._children]
            for child in children:
                ready = self._states[child.name].phase is Phase.READY
                child.terminate() if ready else child.kill()
            self._await_end(children, group.grace)

    def _await_end(self, children: Sequence[Child], grace: float) -> None:
        deadline = time.monotonic() + grace
        while (left := [child.name for child in children if child.poll() is None]) and not self._stop.kill:
            if time.monotonic() >= deadline:
                log.warning("%s did not stop within %g s: killed", ", ".join(left), grace)
                break
            time.sleep(PULSE)
        for child in children:
            child.kill()

    def _kill_all(self) -> None:
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.close()
        self._children.clear()
