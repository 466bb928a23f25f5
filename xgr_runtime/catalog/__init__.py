"""SIDs, items and the trie over them: sources, the built file, filters. Numpy, never torch.

Every process reads the same immutable snapshot; its version is a hash of its content.
"""

from xgr_runtime.catalog.build import build_catalog
from xgr_runtime.catalog.filters import FilterSpec, resolve_items
from xgr_runtime.catalog.load import load_catalog, seal_catalog
from xgr_runtime.catalog.scoring import Forced, Scoring
from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.catalog.template import PromptTemplate
from xgr_runtime.catalog.verify import verify, verify_file
from xgr_runtime.catalog.views import Catalogs, CatalogView, Lease

__all__ = [
    "Catalog",
    "CatalogView",
    "Catalogs",
    "FilterSpec",
    "Forced",
    "Lease",
    "PromptTemplate",
    "Scoring",
    "build_catalog",
    "load_catalog",
    "resolve_items",
    "seal_catalog",
    "verify",
    "verify_file",
]
