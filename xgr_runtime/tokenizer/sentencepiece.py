"""SentencePiece models as tokenizers of the `tokenizers` library, encoding as SentencePiece itself does.

A tokenizer of this kind splits a text at the added tokens and lets SentencePiece encode each part for itself,
so every part gets its leading blank. Rebuilt tokenizers of the same vocabulary often give only the first part
one, and then a prompt lacks ids that training saw.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BLANK = "\u2581"  # how pieces spell a blank
UNIGRAM, PAIRS = 1, 2  # the kinds of model that can be rebuilt
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # the kinds of pieces that matter


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class PieceModel:
    """What a model file says, so far as it decides about ids."""

    pieces: Sequence[Piece]
    kind: int
    charsmap: bytes  # of the normaliser, b"" for none
    dummy_prefix: bool  # a blank before every text
    single_blanks: bool  # blanks at the ends go, several become one

    @property
    def vocabulary(self) -> dict[str, int]:
        """Piece -> id."""
        return {piece.text: number for number, piece in enumerate(self.pieces)}

    @property
    def unknown(self) -> Piece:
        """The piece that stands for what no other spells. Raises ValueError if there is none."""
        for piece in self.pieces:
            if piece.kind == UNKNOWN:
                return piece
        raise ValueError("no piece stands for what is unknown")


def read_pieces(content: bytes) -> PieceModel:
    """A model file. Raises ValueError for what is none, and for what cannot be rebuilt exactly."""
    fields = list(_fields(content))
    pieces = [_piece(dict(_fields(value))) for number, value in fields if number == 1]
    trainer, normalizer = (dict(_fields(_last(fields, number))) for number in (2, 3))
    model = PieceModel(
        pieces=pieces,
        kind=trainer.get(3, UNIGRAM),
        charsmap=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, True)),
        single_blanks=bool(normalizer.get(4, True)),
    )
    _check(model, suffix=bool(trainer.get(24, False)))
    return model


def rebuild(model: PieceModel, legacy: bool) -> Tokenizer:
    """A tokenizer with the ids of that model.

    `legacy`: each part of a text between added tokens is encoded as a text of its own.
    """
    tokenizer = Tokenizer(_pairs(model) if model.kind == PAIRS else _unigram(model))
    steps = _normalization(model)
    if legacy and model.dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    if legacy or not model.dummy_prefix:
        steps.append(normalizers.Replace(" ", BLANK))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False)
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = _decoder(model)
    tokenizer.add_special_tokens(
        [
            AddedToken(p.text, normalized=False, special=True)
            for p in model.pieces
            if p.kind in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(p.text, normalized=False) for p in model.pieces if p.kind == USER_DEFINED]
    )
    return tokenizer


def _check(model: PieceModel, suffix: bool) -> None:
    """Raises ValueError for what would get other ids when it is rebuilt."""
    if not model.pieces:
        raise ValueError("it holds no pieces")
    if model.kind not in (UNIGRAM, PAIRS):
        raise ValueError(f"a model of kind {model.kind} is neither unigram (1) nor BPE (2)")
    if suffix:
        raise ValueError("it puts blanks behind words")
    if model.dummy_prefix and any(piece.kind == USER_DEFINED for piece in model.pieces):
        raise ValueError("it has pieces of its users' and puts a blank before each text")
    if len(model.vocabulary) < len(model.pieces):
        raise ValueError("two pieces read the same")
    _ = model.unknown


def _normalization(model: PieceModel) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.single_blanks:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _pairs(model: PieceModel) -> BPE:
    return BPE(
        vocab=model.vocabulary,
        merges=_merges(model),
        unk_token=model.unknown.text,
        fuse_unk=True,
        byte_fallback=_falls_back(model),
    )


def _merges(model: PieceModel) -> list[tuple[str, str]]:
    """All ways to join two pieces to a third, the best third first."""
    usable = {p.text: p.score for p in model.pieces if p.kind in (NORMAL, USER_DEFINED)}
    ids = model.vocabulary
    found = []
    for text, score in usable.items():
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        found += [(-score, ids[a], ids[b], a, b) for a, b in halves if a in usable and b in usable]
    # Where several pairs give one piece, SentencePiece takes the leftmost in the text, whatever its halves.
    return [(first, second) for _, _, _, first, second in sorted(found)]


def _unigram(model: PieceModel) -> Unigram:
    numbered = [(piece.text, piece.score) for piece in model.pieces]
    unknown = next(n for n, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    return Unigram(numbered, unk_id=unknown, byte_fallback=_falls_back(model))


def _falls_back(model: PieceModel) -> bool:
    return any(piece.kind == BYTE for piece in model.pieces)


def _decoder(model: PieceModel) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        steps.append(decoders.Strip(" ", left=1, right=0))
    return decoders.Sequence(steps)


def _piece(fields: Mapping[int, Any]) -> Piece:
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(fields.get(1, b"").decode(), score, fields.get(3, NORMAL))


def _last(fields: Sequence[tuple[int, Any]], number: int) -> bytes:
    return next((value for found, value in reversed(fields) if found == number), b"")


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer: (number, a whole number or bytes). Raises ValueError."""
    if not isinstance(content, bytes):
        raise ValueError("a message was expected")
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"it is no SentencePiece model (field of kind {kind})")
        if at + size > len(content):
            raise ValueError("it ends in the middle of a field")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it ends in the middle of a number")
