"""The route of single items: those whose titles hold some words."""

import time
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from router.http.control import as_json
from router.http.readers import Readers
from router.http.schema import ItemsQuery
from router.http.server.inbound import while_connected
from router.http.server.problems import from_query
from router.query.models import Models
from xgr_runtime.catalog import Catalog
from xgr_runtime.catalog.finding import find_by_title
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.answers import FoundItem, ItemList

SECONDS = 1.0  # that a search takes at most
WAIT = 5.0  # for those before it, too


class ItemRoutes:
    """One search at a time: it goes through the text of all titles."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._readers = Readers(1)

    async def find(self, request: Request) -> Response:
        query = from_query(ItemsQuery, request.query_params)
        if not query.title.strip():
            raise BadRequest("title is blank: give some words", "title")
        due = time.monotonic() + WAIT
        with self.models.default.catalogs.lease() as lease:
            work = partial(found, lease.view.catalog, query)
            answer = await while_connected(request, self._readers.run(work, due), due)
        return as_json(answer)


def found(catalog: Catalog, query: ItemsQuery) -> ItemList:
    """What a thread finds out."""
    rows, whole = find_by_title(catalog, query.title, query.limit, time.monotonic() + SECONDS)
    at = np.array(rows, np.int64)
    sids = catalog.sids[catalog.leaf_of_row[at]].tolist()
    named = zip(catalog.ids_at(at), catalog.titles_at(at), sids, strict=True)
    items = [FoundItem(item, title or None, sid) for item, title, sid in named]
    return ItemList(items, whole, catalog.version)
