"""The launcher's end of a template: a process that has imported what others need, and forks them.

The other end is `xgr_runtime.process.template`. Templates only make starts short: where there is none, or it
has died, processes start as new interpreters.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence

import msgspec

from xgr_runtime.config import TemplateConfig, to_argv
from xgr_runtime.errors import StartupError
from xgr_runtime.launcher.adoption import Adopted, adopting
from xgr_runtime.launcher.child import Child, ChildFailed
from xgr_runtime.launcher.program import Process, Program, spawn
from xgr_runtime.process.template import MOST_BYTES, ROOM, Fork, Forked, Imports

log = logging.getLogger(__name__)

MODULE = "xgr_runtime.process.template"
ANSWER_SECONDS = 5.0  # for a fork, which takes some hundredths; a template that is stopped is given up
AGAIN_AFTER = 10.0  # seconds between starts of the same template


class NoTemplate(Exception):
    """It cannot fork just now, for a reason that is nobody's mistake."""


class Template:
    """One template: what it imports, and its process while it has one."""

    def __init__(self, name: str, imports: Imports, environ: Mapping[str, str]) -> None:
        """`environ`: on top of ours, what libraries read as they are loaded; all that it forks have it."""
        self.name = name
        self.seconds = 0.0  # that imports took
        self._environ = environ
        self._imports = imports
        self._child: Child | None = None
        self._began = 0.0
        self._ready = False
        self._useless = False

    def begin(self) -> None:
        """Start it; it imports by itself. Raises `StartupError`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_SECONDS)
        self._link, self._began, self._ready = ours, time.monotonic(), False
        with theirs:
            config = TemplateConfig(link_fd=theirs.fileno(), room="." * ROOM, stuck_timeout=0.0)
            program = Program(self.name, MODULE, to_argv(config), self._environ)
            self._child = Child(program, [theirs.fileno()])
            try:
                self._child.start()
            except BaseException:
                self._child = None
                ours.close()
                raise
        with contextlib.suppress(OSError):  # it died at once: the next look says so
            ours.send(msgspec.json.encode(self._imports))

    def settled(self) -> bool:
        """Whether it has imported everything, or never will. What goes wrong is logged, once."""
        if self._child is None or self._useless or self._ready:
            return True
        try:
            info = self._child.check_ready()
        except ChildFailed as error:
            self._give_up(f"{error}")
            return True
        if info is None:
            return False
        self.seconds = time.monotonic() - self._began
        if info["problem"]:
            self._useless = True
            self._give_up(info["problem"])
        self._ready = not self._useless
        return True

    def look(self) -> None:
        """Notice that it has died, and start another, now and then."""
        if self._child is not None and self._ready and self._child.poll() is not None:
            self._give_up(self._child.ending())
        if self._child is None and not self._useless and time.monotonic() >= self._began + AGAIN_AFTER:
            try:
                self.begin()
            except StartupError as error:  # no process or no memory left just now
                log.error("%s", error)
        self.settled()

    def fork(self, program: Program, ready_fd: int, inherits: Sequence[int]) -> Process:
        """Run `program` in a copy of it. Raises `NoTemplate`, and OSError where the system has no room."""
        if not self._ready:
            raise NoTemplate
        request = Fork(program.module, list(program.argv), dict(program.environ), list(inherits))
        read, write = os.pipe()
        stderr = os.fdopen(read, "rb")
        try:
            with adopting():
                answer = self._ask(request, [ready_fd, write, *inherits])
            if answer.error:
                raise OSError(answer.error, os.strerror(answer.error))
            return Adopted(answer.pid, stderr)
        except BaseException:
            stderr.close()
            raise
        finally:
            os.close(write)

    def close(self) -> None:
        """End it; whoever was forked goes on."""
        if self._child is not None:
            self._child.kill()
            self._child.close()
            self._link.close()
            self._child, self._ready = None, False

    def _ask(self, request: Fork, descriptors: Sequence[int]) -> Forked:
        try:
            socket.send_fds(self._link, [msgspec.json.encode(request)], descriptors)
            return msgspec.json.decode(self._link.recv(MOST_BYTES), type=Forked)
        except (OSError, msgspec.DecodeError) as error:
            self._give_up(f"does not answer ({error})")
            raise NoTemplate from error

    def _give_up(self, why: str) -> None:
        log.warning("%s: %s; processes start without it, which takes longer", self.name, why)
        self.close()


class Starter:
    """How a launcher's processes begin: as copies of their template where that is ready, else anew."""

    def __init__(self, templates: Mapping[str, Template] | None = None) -> None:
        """`templates` by the names that programs give."""
        self.templates = dict(templates or {})

    def begin(self) -> None:
        """Let all templates import. Raises `StartupError`."""
        for template in self.templates.values():
            template.begin()

    def settled(self) -> bool:
        """Whether nothing is left to wait for before the first start."""
        return all([template.settled() for template in self.templates.values()])

    def look(self) -> None:
        """See to templates that have died."""
        for template in self.templates.values():
            template.look()

    @property
    def seconds(self) -> float:
        """That the slowest template took for its imports."""
        return max((template.seconds for template in self.templates.values()), default=0.0)

    def start(self, program: Program, ready_fd: int, inherits: Sequence[int]) -> Process:
        """See `launcher.program.Start`."""
        template = self.templates.get(program.template)
        if template is not None:
            with contextlib.suppress(NoTemplate):
                return template.fork(program, ready_fd, inherits)
        return spawn(program, ready_fd, inherits)

    def close(self) -> None:
        """End all templates."""
        for template in self.templates.values():
            template.close()
