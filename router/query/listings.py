"""Whether a version of a catalog has what a listing names."""

from router.listing import Listing
from router.query.prompts import shorten
from xgr_runtime.catalog import Catalog
from xgr_runtime.errors import BadRequest


def check_listing(listing: Listing, catalog: Catalog) -> None:
    """Raises `BadRequest` naming the field of an attribute that the catalog has not, or cannot count."""
    for name in listing.attributes:
        _check_known(name, catalog, "return.attributes")
    if listing.diversity is not None:
        name = listing.diversity.attribute
        _check_known(name, catalog, "diversity.attribute")
        if catalog.columns[name].kind == "other":
            raise BadRequest(
                f"diversity.attribute is {shorten(name)}, whose values are of several kinds, so that it is "
                "not known which are the same: name another, or build the catalog with values of one kind",
                "diversity.attribute",
            )


def _check_known(name: str, catalog: Catalog, field: str) -> None:
    if name not in catalog.columns:
        names = [shorten(known) for known in list(catalog.columns)[:10]]
        known = f"send one of {', '.join(names)}" if names else "it has none, so leave it out"
        more = ", ..." if len(catalog.columns) > len(names) else ""
        raise BadRequest(
            f"{field} names {shorten(name)}, which is no attribute of this catalog: {known}{more}", field
        )
