"""Which SGLang releases this package was run with, and what happens on any other.

SGLang's start-up changes from release to release. An untested one could fail late or, worse, compute
something else, so it is refused by name unless a flag says to try.
"""

import logging
import re
from importlib import metadata

from xgr_runtime.errors import ModelError

log = logging.getLogger(__name__)

# Each release between these two ran test_contract, test_backend and five of test_stock_server,
# beside torch 2.13.
FIRST_TESTED, LAST_TESTED = "0.5.16", "0.5.23"
TESTED = f"{FIRST_TESTED} to {LAST_TESTED}"
OVERRIDE = "--sglang-any-version or XGR_SGLANG_ANY_VERSION=true"

_RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)")


def installed_version() -> str | None:
    """The version of the sglang distribution in this environment; None without one. Imports nothing of it."""
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return None


def is_tested(version: str) -> bool:
    """Whether `version` is in the tested range; candidates and post-releases count as their release."""
    return _release(FIRST_TESTED) <= _release(version) <= _release(LAST_TESTED)


def untested(version: str) -> str | None:
    """Why this release of SGLang is not simply run; None in the tested range."""
    if is_tested(version):
        return None
    return f"sglang {version} was not tested, {TESTED} were: install one of them, or try it with {OVERRIDE}"


def check_version(version: str, any_version: bool = False) -> None:
    """Raises ModelError outside of the tested range; with `any_version` it logs a warning instead."""
    reason = untested(version)
    if reason and not any_version:
        raise ModelError(reason)
    if reason:
        log.warning("sglang %s was not tested, %s were; it runs because of %s", version, TESTED, OVERRIDE)


def _release(version: str) -> tuple[int, ...]:
    """0.5.20.post1+cpu -> (0, 5, 20); what is no version at all is older than everything."""
    found = _RELEASE.match(version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
