"""Edits as lines of JSON: a long batch, read one line after the other."""

from collections.abc import Iterable
from typing import Any

import msgspec

from router.http.catalog_schema import MOST_LINES, EditItems, EditLine, NewItem, UpdatedItem
from router.http.intake import item_ids
from router.http.server.problems import decode
from router.query.edits import AskedEdits, AskedItem
from xgr_runtime.catalog.doubled import doubled_name
from xgr_runtime.errors import BadRequest

LONGEST_LINE = 1 << 20  # bytes
KINDS = EditLine.__struct_fields__
_LINE = msgspec.json.Decoder(EditLine)


def from_body(body: EditItems) -> AskedEdits:
    """Raises `BadRequest` naming the entry."""
    asked = AskedEdits(
        add=[_item(one, f"add[{at}].item", "add.item") for at, one in enumerate(body.add)],
        update=[_item(one, f"update[{at}].item", "update.item") for at, one in enumerate(body.update)],
        remove=item_ids(body.remove, "remove"),
        hide=item_ids(body.hide, "hide"),
        show=item_ids(body.show, "show"),
        rank=[*body.rank.items()],
    )
    if not any(getattr(asked, kind) for kind in KINDS):
        raise BadRequest(f"nothing is asked for: send at least one of {', '.join(KINDS)}")
    return asked


def from_lines(lines: Iterable[bytes]) -> AskedEdits:
    """Blank lines are skipped. Raises `BadRequest` naming the line."""
    lists: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    places: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number, line in enumerate(lines, start=1):
        if number > MOST_LINES:
            raise BadRequest(f"there are more than {MOST_LINES} lines: send several batches")
        if line.isspace():
            continue
        try:
            kind, entries = _entries(line)
        except BadRequest as error:
            raise BadRequest(f"line {number}: {error.message}", error.param) from None
        lists[kind] += entries
        places[kind] += [number] * len(entries)
    if not any(lists.values()):
        raise BadRequest(f"nothing is asked for: send lines such as {EXAMPLE}")
    return AskedEdits(**lists, places=places)


EXAMPLE = '{"hide": "item id"}'


def _entries(line: bytes) -> tuple[str, list[Any]]:
    if len(line) > LONGEST_LINE:
        raise BadRequest(f"has more than {LONGEST_LINE} bytes: shorten it")
    read = decode(_LINE, line)
    if problem := doubled_name(line):
        raise BadRequest(problem)
    given = [kind for kind in KINDS if getattr(read, kind) is not None]
    if len(given) != 1:
        raise BadRequest(f"a line holds exactly one of {', '.join(KINDS)}: it has {len(given)} of them")
    kind = given[0]
    value = getattr(read, kind)
    if isinstance(value, NewItem | UpdatedItem):
        return kind, [_item(value, f"{kind}.item", f"{kind}.item")]
    return kind, [*value.items()] if isinstance(value, dict) else item_ids([value], kind)


def _item(one: NewItem | UpdatedItem, where: str, field: str) -> AskedItem:
    (name,) = item_ids([one.item], where, field)
    return AskedItem(name, one.sid, one.title, one.popularity, one.attributes)
