"""Names that a JSON object has twice, of which decoders keep the last without a word."""

from __future__ import annotations

import json
import re

import msgspec

from xgr_runtime.files import distinct

_NAME_ENDS = re.compile(rb'"\s*:').findall  # of each name, and where a text holds the like
_decode, _encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode


def doubled_name(text: bytes | bytearray, names: int = 1) -> str:
    """What is wrong with `text`, which is JSON and has an object with a name twice; empty if none has.

    names: that it is known to have. What is decoded and encoded again has as many as before unless one got
    lost, so that few texts are read slowly.
    """
    if text.count(b":") <= names:
        return ""
    try:
        escaped = b"\\u00" in text  # maybe a quote or a blank, which encoders spell otherwise
        if not escaped and len(_NAME_ENDS(text)) == len(_NAME_ENDS(_encode(_decode(text)))):
            return ""
        json.loads(text, object_pairs_hook=distinct)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return str(error)
    return ""
