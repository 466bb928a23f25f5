"""A checkpoint's tokenizer, whatever files it comes as: text to token ids as its training had them."""

from xgr_runtime.tokenizer.read import around, read_tokenizer

__all__ = ["around", "read_tokenizer"]
