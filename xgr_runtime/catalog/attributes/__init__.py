"""Typed columns of the items' attributes: what filters read, beside the JSON that answers show.

A column has one kind and a place for every row; a row without the attribute is NULL there.
"""

from xgr_runtime.catalog.attributes.gather import gathered, misfit
from xgr_runtime.catalog.attributes.kinds import AttributeField, AttributeKind, declared_fields
from xgr_runtime.catalog.attributes.stored import (
    AttributeColumn,
    column_arrays,
    column_problem,
    expected_columns,
    stored_columns,
    stored_fields,
)
from xgr_runtime.catalog.attributes.taken import taken

__all__ = [
    "AttributeColumn",
    "AttributeField",
    "AttributeKind",
    "column_arrays",
    "column_problem",
    "declared_fields",
    "expected_columns",
    "gathered",
    "misfit",
    "stored_columns",
    "stored_fields",
    "taken",
]
