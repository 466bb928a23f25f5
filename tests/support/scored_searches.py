"""Searches of catalogs that say how they are scored: by our engine, and by definition, slowly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from decode_worker.engines.cpu import CpuDecodeEngine
from decode_worker.search import Question, Search, tail_tokens_of
from decode_worker.task import TaskFactory
from prefill_worker.engines.base import Part
from prefill_worker.engines.cpu import CpuPrefillEngine
from xgr_kernels.trie import ScoreMode
from xgr_runtime.catalog import Catalog, Catalogs, CatalogView, Scoring
from xgr_runtime.model.base import ModelBackend
from xgr_runtime.model.memory.kv_pool import KvPool
from xgr_runtime.wire.arrays import pack
from xgr_runtime.wire.messages import AttemptId, DecodeRequest, Limits

Sid = tuple[int, ...]
Ranked = list[tuple[Sid, float]]
PAGE = 16


def question_of(
    catalog: Catalog,
    backend: ModelBackend,
    prompt: Sequence[int],
    width: int,
    mode: ScoreMode | None = None,
    penalty: float | None = None,
    deny: Sequence[int] = (),
) -> Question:
    """What a decode worker makes of a request; what is None is the catalog's. deny: leaves."""
    scoring = catalog.scoring
    request = DecodeRequest(
        id=AttemptId(1, 1, 1, 1, 1),
        tokens=pack(np.array([*prompt, *scoring.prompt_head], np.int32)),
        width=width,
        results=width,
        score_mode=mode or scoring.score_mode,
        catalog=catalog.version,
        allow=None,
        deny=pack(np.array(deny, np.int32)),
        timeout=60.0,
        repetition_penalty=penalty or scoring.repetition_penalty,
    )
    factory = TaskFactory(Catalogs(CatalogView(catalog)), backend.identity, Limits(4096, 4096))
    return factory.make(request, 0.0).question


class Searches:
    """One prompt at a time, through both CPU engines."""

    def __init__(self, backend: ModelBackend, catalog: Catalog, pages: int = 64, rows: int = 1024) -> None:
        self.backend, self.catalog = backend, catalog
        self.pool = KvPool(backend.identity, pages, PAGE)
        self.tail_tokens = tail_tokens_of(catalog.emitted_tokens)
        self.engine = CpuDecodeEngine(backend, self.pool, self.tail_tokens, rows, "cpu")
        self.engine.tail.k.fill_(torch.nan)  # memory that nobody has written must not matter
        self.engine.tail.v.fill_(torch.nan)

    def search(self, prompt: Sequence[int], question: Question, given: bool = True) -> Search:
        """Ready to run: its prompt is computed. `given`: with the hidden state of its last token."""
        tokens = np.array([*prompt, *self.catalog.scoring.prompt_head], np.int32)
        pages = np.arange(-(-len(tokens) // PAGE), dtype=np.int32)
        hidden = CpuPrefillEngine(self.backend, self.pool).run([Part(tokens, pages)], lambda layer: None)
        rows = np.arange(question.most_beams, dtype=np.int32)
        return Search(question, pages, rows, hidden[0] if given else None, self.tail_tokens)

    def ranked(self, prompt: Sequence[int], width: int, given: bool = True, **asked: Any) -> Ranked:
        """SIDs and cumulative log-probabilities, best first; `asked`: see `question_of`."""
        question = question_of(self.catalog, self.backend, prompt, width, **asked)
        search = self.search(prompt, question, given)
        while not search.over:
            self.engine.step([search])
        leaves, scores = search.answer()
        sids = map(tuple, self.catalog.sids[leaves].tolist())
        return list(zip(sids, scores.tolist(), strict=True))


def emitted(catalog: Catalog, leaves: Sequence[int] | None = None) -> dict[Sid, Sid]:
    """Of each SID of these leaves what a search emits."""
    scoring = catalog.scoring
    head, tail = ([f.token for f in some] for some in (scoring.emitted_head, scoring.emitted_tail))
    some = catalog.sids if leaves is None else catalog.sids[list(leaves)]
    return {tuple(sid): (*head, *sid, *tail) for sid in some.tolist()}


def children_of(paths: dict[Sid, Sid]) -> dict[Sid, list[int]]:
    """The tokens that may follow each prefix of what is emitted."""
    found: dict[Sid, set[int]] = defaultdict(set)
    for path in paths.values():
        for level, token in enumerate(path):
            found[path[:level]].add(token)
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


@torch.inference_mode()
def slow_beams(
    model: Any,
    catalog: Catalog,
    prompt: Sequence[int],
    width: int,
    mode: ScoreMode = "vocab",
    penalty: float = 1.0,
    leaves: Sequence[int] | None = None,
) -> Ranked:
    """Exact beams by definition, over the model's own logits: every token is emitted, none is passed over."""
    scoring, paths = catalog.scoring, emitted(catalog, leaves)
    children, before = children_of(paths), [*prompt, *scoring.prompt_head]
    beams: Ranked = [((), 0.0)]
    for level in range(catalog.emitted_tokens):
        rows = model(torch.tensor([[*before, *prefix] for prefix, _ in beams])).logits[:, -1].double()
        grown: Ranked = []
        for (prefix, score), row in zip(beams, rows, strict=True):
            over = _softmax_over(catalog, level, children[prefix], mode, len(row))
            for token in children[prefix]:
                value = (
                    0.0
                    if _unscored(scoring, catalog.depth, level)
                    else float(row[token] - row[over].logsumexp(0))
                )
                if token in before or token in prefix:
                    value = value * penalty if value < 0 else value / penalty
                if scoring.renormalize:
                    value -= float(_penalised(row, [*before, *prefix], penalty, over).logsumexp(0))
                grown.append(((*prefix, token), score + value))
        grown.sort(key=lambda pair: -pair[1])
        beams = grown[:width]
    sids = {path: sid for sid, path in paths.items()}
    return [(sids[path], score) for path, score in beams]


def _penalised(row: torch.Tensor, held: Sequence[int], penalty: float, over: list[int]) -> torch.Tensor:
    """What the penalty leaves of the log-probabilities of the tokens `over`."""
    scores, factor = row - row[over].logsumexp(0), torch.ones(len(row), dtype=row.dtype)
    factor[sorted(set(held))] = penalty
    return torch.where(scores < 0, scores * factor, scores / factor)[over]


def _unscored(scoring: Scoring, depth: int, level: int) -> bool:
    head, tail = scoring.emitted_head, scoring.emitted_tail
    scored = [*(f.scored for f in head), *[True] * depth, *(f.scored for f in tail)]
    return not scored[level]


def _softmax_over(catalog: Catalog, level: int, legal: list[int], mode: ScoreMode, vocab: int) -> list[int]:
    """The tokens that the mode says."""
    at = level - len(catalog.scoring.emitted_head)
    tokens = list(range(vocab)) if mode == "vocab" else legal
    if mode == "level" and 0 <= at < catalog.depth:
        declared = catalog.scoring.level_tokens
        own = {int(token) for token in catalog.sids[:, at]}
        tokens = list(range(declared[at][0], declared[at][1] + 1)) if declared else sorted(own)
    return tokens


def assert_ranked(got: Ranked, expected: Ranked, tolerance: float, ties: float = 5e-5) -> None:
    """The same list, but for the order of scores within `ties`; scores within `tolerance`."""
    assert len(got) == len(expected)
    theirs, last = dict(expected), expected[-1][1] if expected else 0.0
    for (sid, score), (other, wanted) in zip(got, expected, strict=True):
        assert abs(score - wanted) <= tolerance, (sid, score, other, wanted)
        if sid != other:  # a tie: its place is near, or, at the end of the list, outside
            assert abs(theirs.get(sid, last) - wanted) <= ties, (sid, other)
    assert len({sid for sid, _ in got}) == len(got)
