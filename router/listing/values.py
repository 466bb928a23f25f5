"""The values of an attribute as diversity compares them: those that conditions compare, too."""

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from xgr_runtime.catalog import Catalog
from xgr_runtime.catalog.attributes.kinds import AS_KIND

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Values:
    """Of one attribute, which has a column with one kind of values."""

    def __init__(self, catalog: Catalog, rows: NDArray[np.integer], attribute: str) -> None:
        """`rows`: those that may be asked for."""
        self._texts = dict(zip(rows.tolist(), catalog.attribute_texts_at(rows), strict=True))
        self._attribute = attribute
        self._kind = catalog.columns[attribute].kind

    def __call__(self, row: int) -> Sequence[Hashable]:
        """The row's distinct values: several of a list of texts, none where it is NULL."""
        raw = fields(self._texts[row]).get(self._attribute)
        value = None if raw is None else AS_KIND[self._kind](msgspec.json.decode(raw))
        if value is None:
            return ()
        return list(dict.fromkeys(value)) if self._kind == "strings" else (value,)


def fields(text: bytes) -> dict[str, Any]:
    """An item's attributes by name, each as JSON still."""
    return _FIELDS.decode(text) if text else {}
