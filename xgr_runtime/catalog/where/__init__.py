"""Filters as SQL writes them, over the columns of attributes: read, checked, evaluated to a bitmap of rows.

sqlglot reads the text; what it may hold is listed here, and everything else is refused before a row is read.
"""

from xgr_runtime.catalog.where.kept import KeptFilters
from xgr_runtime.catalog.where.live import ColumnSegment, ItemRows, LiveRows, check_where, live_rows
from xgr_runtime.catalog.where.words import MAX_CHARACTERS

__all__ = [
    "MAX_CHARACTERS",
    "ColumnSegment",
    "ItemRows",
    "KeptFilters",
    "LiveRows",
    "check_where",
    "live_rows",
]
