"""The store of a deployment whose catalog changes: versions, the journal of their batches, named filters.

One folder, which one process writes to at a time and any number reads. What was acknowledged is on the disk.
"""

from xgr_runtime.catalog.store.begin import begin
from xgr_runtime.catalog.store.folder import StoreFolder, uploading
from xgr_runtime.catalog.store.records import Chain, Change, FirstAnswer, StoredFilter
from xgr_runtime.catalog.store.store import Store

__all__ = ["Chain", "Change", "FirstAnswer", "Store", "StoreFolder", "StoredFilter", "begin", "uploading"]
