"""Values of settings as they are written: lists and texts of a command line, and the file of `--config`."""

import math
import tomllib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary

MOST_TEXT = 4096  # bytes of a text, as of a path on Linux
MOST_FILE = 1 << 20  # bytes of a file of settings
SHOWN = 200  # characters of a wrong value


def joined(parts: Sequence[str]) -> str:
    """What `listed` takes apart again: a folder's name may hold a comma."""
    plain = all(part and "," not in part and not part.startswith("[") for part in parts)
    return ",".join(parts) if plain else msgspec.json.encode(parts).decode()


def listed(text: str) -> list[str]:
    """Parts with commas between them; in JSON where a part has a comma itself. Raises `ValueError`."""
    if text.startswith("["):
        try:
            return msgspec.json.decode(text.encode(errors="surrogateescape"), type=list[str])
        except RecursionError:
            raise ValueError("a list of texts was expected") from None
    return [part for part in text.split(",") if part]


def check_value(value: object) -> None:
    """Raises `ValueError` for what is in its type and within its bounds, and no process can use."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a number")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not is_plain(text):
            raise ValueError(
                "a text without control characters, in UTF-8, of at most 4096 bytes was expected"
            )


def is_plain(text: str) -> bool:
    """Whether a text can be a file's name, and travel in messages and log lines."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        return False
    return size <= MOST_TEXT and not any(unicodedata.category(sign) == "Cc" for sign in text)


def brief(text: str) -> str:
    """As much of it as an error shows."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def read_file(path: str | None) -> dict[str, Any]:
    """The settings in a TOML file, none without one. Raises `ConfigError`."""
    if not path:
        return {}
    try:
        return tomllib.loads(_read_text(Path(path)))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path} is not TOML: it is no text in UTF-8") from None
    except RecursionError:
        raise ConfigError(f"--config {path} is nested too deeply: settings are one level deep") from None
    except ValueError as error:  # also a number of thousands of digits
        raise ConfigError(f"--config {path} is not TOML: {brief(str(error))}") from None


def _read_text(path: Path) -> str:
    """What is in an ordinary file. Raises `ConfigError`, OSError, UnicodeDecodeError."""
    try:
        file = open_ordinary(path)
    except ValueError:
        raise ConfigError(f"--config {path} is no ordinary file: name one") from None
    with file:
        content = file.read(MOST_FILE + 1)
    if len(content) > MOST_FILE:
        raise ConfigError(
            f"--config {path} is larger than {MOST_FILE >> 20} MiB: it is not a file of settings"
        )
    return content.decode()
