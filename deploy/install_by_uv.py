"""pip install by uv, from where pip is configured to look: uv reads none of that itself.

Usage: python install_by_uv.py ARGUMENTS, as of `pip install`. It installs into the Python that runs it. Fails
where uv is not to be had, is not told of a setting of pip, or does not manage: pip may.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence

UV = "uv>=0.13"
CARRIED = {  # a setting of pip, the variable by which uv is told, and what is between several values
    "index-url": ("UV_INDEX_URL", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}
OF_NO_MATTER = {
    *("cache-dir", "compile", "config-file", "default-timeout", "disable-pip-version-check", "no-cache-dir"),
    *("no-color", "no-input", "no-warn-script-location", "progress-bar", "quiet", "retries"),
    *("root-user-action", "timeout", "verbose"),
}
"""Settings of pip that change nothing of what is installed."""
BY_PIPS_RULES = {"UV_NO_CONFIG": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
"""No configuration but pip's, and the best version of all indexes, not that of the first which has any."""


def pip() -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def settings_of_pip() -> dict[str, str]:
    """By the name of the option, as pip installs here."""
    listed = subprocess.run([*pip(), "config", "list"], capture_output=True, text=True, check=True)
    return configured(listed.stdout)


def configured(listing: str) -> dict[str, str]:
    """What `pip config list` says of installations. Variables count first, then [install], [global]."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def for_uv(settings: dict[str, str]) -> dict[str, str]:
    """The same as variables of uv. Raises `ValueError` naming what it has none for."""
    if unknown := settings.keys() - CARRIED.keys() - OF_NO_MATTER:
        raise ValueError(f"pip is configured with {', '.join(sorted(unknown))}, which uv is not told of")
    told = {}
    for key, (variable, between) in CARRIED.items():
        if parts := settings.get(key, "").split():
            told[variable] = between.join(parts)
    return BY_PIPS_RULES | told


def main(arguments: Sequence[str]) -> int:
    """uv's exit status, or pip's where that installs no uv."""
    try:
        told = for_uv(settings_of_pip())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if code := subprocess.run([*pip(), "--quiet", "install", UV]).returncode:
        return code
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *bytecode(sys.dont_write_bytecode)]
    return subprocess.run([*uv, "--python", sys.executable, *arguments], env=os.environ | told).returncode


def bytecode(never_kept: bool) -> list[str]:
    """Compile all that is installed only where Python keeps nothing that it compiles as it imports.

    Where it does, that is a quarter of the modules, and a third of the time.
    """
    return ["--compile-bytecode"] if never_kept else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
