"""Whether the levels of a source are those of the tokenizer: all of them, in their order, of their sizes.

A level that is missing or stands in another's place is spelt with tokens that exist, and would serve wrong
items without a word.
"""

from __future__ import annotations

import itertools
import re
import string
from typing import TYPE_CHECKING

from xgr_runtime.catalog.declared import CODE, TOKEN_IDS, Declared, split_sid
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from xgr_runtime.catalog.vocabulary import Vocabulary

_TRIED = 16  # codes by which a codebook's place in the vocabulary is known
_LETTERED = re.compile(r"(<(?:[^<>]*_)?)([a-z])(_?)([0-9]+>)")


def check_codebooks(form: Declared, sids: NDArray[np.int32], vocabulary: Vocabulary) -> None:
    """sids [N, depth]. Raises CatalogError that says what to declare."""
    if vocabulary.tokenizer is None:
        return
    if not form.sid_format:
        _refuse_missing(sids[0].tolist(), vocabulary)
    elif form.sid_format != TOKEN_IDS:
        pieces = [piece for piece in split_sid(form.sid_format) if len(CODE.findall(piece)) == 1]
        _check_order(pieces, vocabulary)
        if len(pieces) == len(form.sid_packed):
            _check_sizes(form.sid_packed, pieces, vocabulary)


def _spelt(piece: str, code: int, vocabulary: Vocabulary) -> int | None:
    return vocabulary.find(CODE.sub(str(code), piece))


def _refuse_missing(sid: Sequence[int], vocabulary: Vocabulary) -> None:
    """Levels are often told apart by a letter: <a_1><b_1> lacks one where the tokenizer has <c_0>, <c_1>."""
    assert vocabulary.tokenizer is not None
    spelt = [_LETTERED.fullmatch(vocabulary.tokenizer.id_to_token(token) or "") for token in sid]
    found = [one for one in spelt if one is not None]
    used = [one[2] for one in found]
    alike = len(found) == len(sid) > 1 and len({(one[1], one[3]) for one in found}) == 1
    if not alike or len(set(used)) < len(used):
        return
    begin, between = found[0][1], found[0][3]
    for letter in string.ascii_lowercase:
        if letter in used or any(vocabulary.find(f"{begin}{letter}{between}{n}>") is None for n in (0, 1)):
            continue
        form = "".join(f"{begin}{one}{between}{{{n}}}>" for n, one in enumerate(used))
        raise CatalogError(
            f"SIDs have the levels {', '.join(used)}, and the tokenizer has tokens of one more, such as "
            f"{begin}{letter}{between}0>: if a level is missing, write all of them; if not, declare "
            f'"sid_format": "{form}"'
        )


def _check_order(pieces: Sequence[str], vocabulary: Vocabulary) -> None:
    """Training adds the tokens of one level after those of the one before."""
    tried = [[_spelt(piece, code, vocabulary) for code in range(_TRIED)] for piece in pieces]
    levels = [[token for token in ids if token is not None] for ids in tried]
    if (
        len({piece[: piece.index("{")] for piece in pieces}) < len(pieces)
        or min(map(len, levels), default=0) < 4
    ):
        return
    apart = all(
        max(one) < min(other) or max(other) < min(one) for one, other in itertools.combinations(levels, 2)
    )
    if not apart:
        return
    for level, (before, behind) in enumerate(itertools.pairwise(levels)):
        if max(behind) < min(before):
            raise CatalogError(
                f"sid_format has {pieces[level]} before {pieces[level + 1]}, the vocabulary the other way "
                "round: correct the order, or spell the SIDs in the source as tokens"
            )


def _check_sizes(sizes: Sequence[int], pieces: Sequence[str], vocabulary: Vocabulary) -> None:
    """Where a level has more tokens than its size, and sizes in another order would go with all levels."""
    fits = [{size: _spelt(piece, size, vocabulary) is None for size in set(sizes)} for piece in pieces]
    wrong = next((level for level, size in enumerate(sizes) if not fits[level][size]), None)
    if wrong is None:
        return
    for order in itertools.permutations(sizes):
        if all(known[size] for known, size in zip(fits, order, strict=True)):
            raise CatalogError(
                f"sid_packed says that level {wrong} has {sizes[wrong]} codes, and the tokenizer has more of "
                f"{pieces[wrong]}: it may be {list(order)}; correct it"
            )
