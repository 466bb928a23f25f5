"""Changes to a catalog while it is served: one batch after the other, each giving the next version."""

from xgr_runtime.catalog.edits.apply import edited
from xgr_runtime.catalog.edits.batch import EditBatch, ItemRecord

__all__ = ["EditBatch", "ItemRecord", "edited"]
