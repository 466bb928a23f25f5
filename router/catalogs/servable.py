"""Whether a checkpoint can serve a catalog: said before anything is sent, naming items."""

import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from xgr_runtime.catalog.snapshot import Catalog
from xgr_runtime.errors import CatalogError
from xgr_runtime.prompts import Prompts

_CODE = re.compile("[0-9]+")
_NAMED = 3  # items

TokenTest = Callable[[NDArray[np.int32]], NDArray[np.bool_]]


class Servable:
    """What all catalogs have in common that one deployment serves."""

    def __init__(self, first: Catalog, tokenizer: Tokenizer, prompts: Prompts) -> None:
        """`first`: with which the workers were started, or one like it."""
        self.vocab_size = first.vocab_size
        self._emitted = first.emitted_tokens
        self._depth = first.depth
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._spellings = [set(spellings) for spellings in self._spelt(first)]

    def checked(self, catalog: Catalog) -> Catalog:
        """The catalog for this vocabulary. Raises CatalogError."""
        if catalog.depth != self._depth or catalog.emitted_tokens != self._emitted:
            raise CatalogError(
                f"its SIDs have {catalog.depth} tokens and searches emit {catalog.emitted_tokens}, this "
                f"deployment was started for {self._depth} and {self._emitted}: restart it with that catalog"
            )
        self._check_vocabulary(catalog)
        catalog = catalog.for_vocabulary(self.vocab_size)
        self._check_levels(catalog)
        self._prompts.check(catalog)
        return catalog

    def _check_vocabulary(self, catalog: Catalog) -> None:
        for level in range(catalog.depth):
            found = items_with(catalog, level, lambda tokens: tokens >= self.vocab_size)
            if found:
                raise CatalogError(
                    f"{found} have tokens of level {level} beyond the vocabulary, which ends at "
                    f"{self.vocab_size - 1}: use the checkpoint that the SIDs were made for"
                )

    def _check_levels(self, catalog: Catalog) -> None:
        """Tokens of another codebook would serve wrong items without a word."""
        for level, spellings in enumerate(self._spelt(catalog)):
            known = self._spellings[level]
            unknown = {form: token for form, token in spellings.items() if form not in known}
            if not unknown or not all("#" in form for form in known):
                continue
            token = next(iter(unknown.values()))
            found = items_with(catalog, level, lambda tokens, token=token: tokens == token)  # type: ignore[misc]
            text = self._tokenizer.id_to_token(token)
            raise CatalogError(
                f"{found} have the token {text!r} in level {level}, whose tokens are like {min(known)!r}: "
                "write the levels in their order"
            )

    def _spelt(self, catalog: Catalog) -> Iterator[dict[str, int]]:
        """By level the forms of its tokens' texts, with # for codes, and a token of each."""
        for tokens in catalog.trie.tokens:
            forms: dict[str, int] = {}
            seen = np.zeros(int(tokens.max()) + 1, np.bool_)
            seen[tokens] = True
            for token in np.flatnonzero(seen).tolist():
                text = self._tokenizer.id_to_token(token)
                forms.setdefault(_CODE.sub("#", text) if text else "", token)
            yield forms


def items_with(catalog: Catalog, level: int, wrong: TokenTest) -> str:
    """The first items whose token of that level is `wrong`, and how many there are; empty for none."""
    leaves = np.flatnonzero(wrong(catalog.sids[:, level]))
    if not len(leaves):
        return ""
    named = [name for names in catalog.items_of_leaves(leaves[:_NAMED]) for name in names][:_NAMED]
    more = "" if len(leaves) <= _NAMED else f" and those of {len(leaves) - _NAMED} further SIDs"
    return f"the items {', '.join(repr(name[:80]) for name in named)}{more}"
