"""The folder of what is made once and used again at later starts: compiled kernels, what
launches cost, merged adapters.

All of it may be lost, and is made anew then. Kernels that are read from it are run, so it belongs to this
user and nobody else may write to it.
"""

import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from xgr_runtime.errors import ConfigError

log = logging.getLogger(__name__)

NONE = "none"  # the setting that keeps nothing
NAME = "xgr-runtime"


def cache_folder(setting: str = "", environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder, made where it was not; None where `setting` or this machine keeps nothing.

    The first of these that can be used: what `setting` names, `$XDG_CACHE_HOME/xgr-runtime`,
    `~/.cache/xgr-runtime`, and one under the temporary folder. Raises `ConfigError` if `setting` names one
    that cannot be; says so once if none can.
    """
    if setting == NONE:
        return None
    if setting:
        return _checked(Path(setting).expanduser())
    refused = []
    for folder in _usual(os.environ if environ is None else environ):
        try:
            return _checked(folder)
        except ConfigError as error:
            refused.append(str(error))
    log.warning(
        "nothing can be kept for later starts, so kernels compile at every start: "
        "name a folder of your own by --cache-folder (%s)",
        "; ".join(refused),
    )
    return None


def _usual(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where the folder is looked for if nobody named one."""
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():
        yield xdg / NAME
    home = Path(environ.get("HOME", ""))
    if home.is_absolute() and home.is_dir():  # one that is missing is not ours to make
        yield home / ".cache" / NAME
    # Another name than a running launcher's folder, which goes with it.
    yield Path(tempfile.gettempdir()) / f"{NAME.replace('-', '_')}-{os.geteuid()}"


def _checked(folder: Path) -> Path:
    """The folder, made if need be. Raises `ConfigError` where we cannot write to it, or others can."""
    where = f"the cache folder {folder}"
    try:
        folder = folder.parent.resolve() / folder.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where} cannot be used ({reason}): name another by --cache-folder") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{where} is a link: name what it leads to by --cache-folder")
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{where} can be written by others, and code is run from it: name a new folder inside of it, or "
            "another, by --cache-folder"
        )
    return folder
