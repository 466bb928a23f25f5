"""A catalog store in plain lists and dicts: what a store must hold after some operations, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from xgr_runtime.catalog.store import Store


class StoreStep(msgspec.Struct, frozen=True):
    """One operation on a store. `name`: of a push the catalog's place in a list, of a filter its name."""

    kind: str  # append, push, rebase, switch, filter, forget
    version: str = ""
    batch: bytes = b""
    key: str = ""
    name: str = ""


@dataclass
class StoreOracle:
    """`history`: (kind, version, place of the entry below). `ways`: parent, batch, version of edits."""

    history: list[tuple[str, str, int | None]] = field(default_factory=list)
    ways: set[tuple[str, bytes, str]] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    filters: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def current(self) -> str | None:
        return self.history[-1][1] if self.history else None

    @property
    def before(self) -> str | None:
        below = self.history[-1][2] if self.history else None
        return None if below is None else self.history[below][1]

    def apply(self, step: StoreStep) -> None:
        """As the store does it."""
        newest = len(self.history) - 1 if self.history else None
        if step.kind == "append":
            assert self.current is not None
            self.ways.add((self.current, step.batch, step.version))
            self.history.append(("edit", step.version, newest))
            self.keys |= {step.key: step.version} if step.key else {}
        elif step.kind == "push":
            self.history.append(("push", step.version, newest))
            self.files.add(step.version)
        elif step.kind == "rebase":
            self.files.add(step.version)
        elif step.kind == "switch":
            self.history.append(("rollback", step.version, self._below(step.version, newest)))
        elif step.kind == "filter":
            self.filters[step.name] = step.version
        else:
            del self.filters[step.name]

    def _below(self, version: str, newest: int | None) -> int | None:
        at = newest
        while at is not None:
            if self.history[at][1] == version:
                return self.history[at][2]
            at = self.history[at][2]
        return newest

    def differs(self, store: Store) -> str:
        """What the store has otherwise, empty if nothing."""
        found = [(one.kind, one.version) for one in reversed(store.history(1 << 20))]
        if found != [(kind, version) for kind, version, _ in self.history]:
            return "history"
        if store.current != self.current or store.before() != self.before:
            return "current version"
        if {name: one.where for name, one in store.filters().items()} != self.filters:
            return "filters"
        answers = {key: store.answered(key) for key in self.keys}
        if {key: one and one.version for key, one in answers.items()} != self.keys:
            return "keys"
        return self._chain_differs(store) if self.current else ""

    def _chain_differs(self, store: Store) -> str:
        """Of the current version: batches from a file that is there and whole."""
        chain = store.chain()
        if chain.base not in self.files or chain.version != self.current:
            return "chain"
        store.sealed(chain.base).close()
        at = chain.base
        for version, batch in chain.batches:
            if (at, batch, version) not in self.ways:
                return f"batch that leads to {version}"
            at = version
        return ""
