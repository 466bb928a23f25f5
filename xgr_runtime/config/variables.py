"""The environment variables that are ours: the list of all that mean something; others are refused.

A misspelt name must not pass for a variable that is not set: the server would start without its key.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from itertools import permutations

from xgr_runtime.errors import ConfigError

PREFIX = "XGR_"
ELSEWHERE = {
    "XGR_CONFIG": "the file of settings, as --config",
    "XGR_VENV": "deploy/: the environment that its scripts make and use",
    "XGR_SGLANG_VENV": "deploy/: the same for SGLang on a CPU",
    "XGR_TORCH_INDEX": "deploy/: where torch's CPU build comes from",
    "XGR_TEST_DATA": "tests: the folder with real catalogs and checkpoints",
}
"""Variables that are no setting of a process, and who reads them."""

_SHOWN = 80  # characters of a name
_PREFIXES = {"".join(letters) for letters in permutations("XGR")}


def variable(setting: str) -> str:
    """`max_rows` -> `XGR_MAX_ROWS`."""
    return PREFIX + setting.upper()


def check_variables(environ: Mapping[str, str], settings: Iterable[str]) -> None:
    """Refuse variables that look like ours and are none of them; `settings` are those of all our processes.

    Raises `ConfigError` with the nearest names. It shows no value: that may be a secret.
    """
    known = {variable(setting) for setting in settings} | set(ELSEWHERE)
    letters = {_letters(name): name for name in known}
    wrong = sorted(name for name in environ if name not in known and _looks_like_ours(name, letters))
    if wrong:
        raise ConfigError("; ".join(_advice(name, known, letters) for name in wrong))


def _looks_like_ours(name: str, letters: Mapping[str, str]) -> bool:
    """Whether it has our prefix, in any case and with any sign behind it, or is one of ours but for a slip.

    XGRAMMAR_... is somebody else's, and so is XRG_... unless what follows is a setting of ours.
    """
    start, sign = name[:3].upper(), name[3:4]
    if start == "XGR" and sign and not sign.isalnum():
        return True
    plain = _letters(name)
    return plain[:3] in _PREFIXES and f"XGR{plain[3:]}" in letters


def _letters(name: str) -> str:
    return "".join(sign for sign in name.upper() if sign.isalnum())


def _advice(name: str, known: Collection[str], letters: Mapping[str, str]) -> str:
    wanted = f"XGR{_letters(name)[3:]}"
    # Compared without the prefix, which would make all names alike.
    near = difflib.get_close_matches(wanted[3:], [plain[3:] for plain in letters], n=1, cutoff=0.6)
    shown = ascii(name[:_SHOWN])[1:-1]
    if not near:
        return f"{shown} is no variable of ours: unset it, or look up the name in `xgr serve --help`"
    return f"{shown} is no variable of ours: did you mean {letters[f'XGR{near[0]}']}? Rename or unset it"
