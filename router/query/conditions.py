"""Named conditions of a deployment, and how those of a request become one text."""

from collections.abc import Mapping, Sequence

from router.query.prompts import shorten
from xgr_runtime.catalog import CatalogView
from xgr_runtime.catalog.where import MAX_CHARACTERS, check_where
from xgr_runtime.errors import BadRequest

NAMED = "filters.named"


def condition(named: Sequence[str], where: str | None, known: Mapping[str, str]) -> str | None:
    """The conditions of these names and `where`, which all have to hold; None without any.

    One text for one meaning, whatever the order of names. Raises BadRequest for a name that is not known.
    """
    for at, name in enumerate(named):
        if name not in known:
            raise BadRequest(
                f"{NAMED}[{at}] is {shorten(name)}, and there is no filter of that name: see GET /filters",
                NAMED,
            )
    parts = list(dict.fromkeys([known[name] for name in sorted(named)] + ([] if where is None else [where])))
    return " AND ".join(f"({part})" for part in parts) if len(parts) > 1 else parts[0] if parts else None


def check_condition(
    whole: str, named: Sequence[str], where: str | None, known: Mapping[str, str], view: CatalogView
) -> None:
    """Each part by itself, as together they could read otherwise. Raises BadRequest naming the part."""
    if not named or whole in view.filters:
        return
    columns = view.catalog.columns
    if where is not None:
        check_where(where, columns)
    for name in named:
        try:
            check_where(known[name], columns)
        except BadRequest as error:
            raise BadRequest(f"{NAMED}, {shorten(name)}: {error.message}", NAMED) from None
    try:
        check_where(whole, columns)
    except BadRequest as error:
        parts = f"{' and '.join(map(shorten, named))}{' and filters.where' if where is not None else ''}"
        limit = f", at most {MAX_CHARACTERS} characters in all"
        raise BadRequest(f"{NAMED}: {parts} are too much together{limit} ({error.message})", NAMED) from None
