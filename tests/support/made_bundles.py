"""SID bundles as TorchEasyRec's tool publishes them: generations of items that only grow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Item = tuple[Any, tuple[int, ...]]  # id and codes
PER_PART = 7  # rows


@dataclass
class MadeBundle:
    """Publishes into `root`; `items` are those of the last generation, new ones behind the others."""

    root: Path
    codebook: tuple[int, ...]
    items: list[Item] = field(default_factory=list)
    last: str | None = None  # uuid

    def publish(self, name: str, new: Sequence[Item], *, anew: bool = False, finished: bool = True) -> str:
        """A generation that adds `new`, or with `anew` holds them alone; its uuid."""
        if anew:
            self.items, self.last = [], None
        since, self.items = self.last, [*self.items, *new]
        tables = {"item_to_sid": self._rows(self.items), "sid_to_items": self._buckets(self.items)}
        if since is not None:
            touched = {sid for _, sid in new}
            tables["delta_item_to_sid"] = self._rows(new)
            tables["delta_sid_to_items"] = self._buckets([item for item in self.items if item[1] in touched])
        manifest: dict[str, Any] = {
            "bundle_uuid": f"uuid-of-{name}",
            "codebook": list(self.codebook),
            "capacity": 5,
            "max_observed_items_per_sid": 5,
            "artifacts": {},
        }
        if since is not None:
            manifest["since_bundle_uuid"] = since
        for artifact, table in tables.items():
            folder = self.root / name / artifact
            folder.mkdir(parents=True)
            for first in range(0, max(1, len(table)), PER_PART):
                pq.write_table(
                    table[first : first + PER_PART], folder / f"part-{first // PER_PART:05}.parquet"
                )
            entry = {"save_type": "parquet", "rows": len(table), "location": f"elsewhere/{name}/{artifact}"}
            manifest["artifacts"][artifact] = entry
        if finished:
            (self.root / name / "manifest.json").write_text(json.dumps(manifest))
        self.last = f"uuid-of-{name}"
        return self.last

    def _rows(self, items: Sequence[Item]) -> pa.Table:
        sids = [list(sid) for _, sid in items]
        return pa.table(
            {
                "item_id": [item for item, _ in items],
                "origin_codebook": pa.array(sids, pa.list_(pa.int64())),
                "codebook": pa.array(sids, pa.list_(pa.int64())),
                "offset_codebook": pa.array(self._shifted(sids), pa.list_(pa.int64())),
                "index": pa.array(range(1, len(items) + 1), pa.int64()),
            }
        )

    def _buckets(self, items: Sequence[Item]) -> pa.Table:
        ordered = sorted(items, key=lambda item: item[1])
        groups = [
            (list(sid), [item for item, _ in some]) for sid, some in groupby(ordered, lambda item: item[1])
        ]
        sids = [sid for sid, _ in groups]
        return pa.table(
            {
                "codebook": pa.array(sids, pa.list_(pa.int64())),
                "offset_codebook": pa.array(self._shifted(sids), pa.list_(pa.int64())),
                "itemids": [ids for _, ids in groups],
            }
        )

    def _shifted(self, sids: Sequence[Sequence[int]]) -> list[list[int]]:
        before = np.cumsum([0, *self.codebook[:-1]]).tolist()
        return [[code + shift for code, shift in zip(sid, before, strict=True)] for sid in sids]
