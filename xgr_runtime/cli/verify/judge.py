"""Each case asked, and its prompt and ranked list held against what the case says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from xgr_runtime.cli.verify.compare import Lists, compare
from xgr_runtime.cli.verify.prompts import first_difference
from xgr_runtime.cli.verify.sids import SidTable
from xgr_runtime.errors import CatalogError, ConfigError, RequestError

if TYPE_CHECKING:
    from xgr_runtime.cli.verify.cases import Beam, Case
    from xgr_runtime.cli.verify.prompts import Renderer
    from xgr_runtime.cli.verify.served import Served
    from xgr_runtime.cli.verify.terms import Ranked, Sid, Terms
    from xgr_runtime.wire.answers import Answer

PromptVerdict: TypeAlias = Literal["same", "differs", "not compared"]


@dataclass(frozen=True)
class Bounds:
    """What a pass takes. overlap: mean overlap@width that is enough; None: lists must be the same."""

    tolerance: float
    overlap: float | None = None


@dataclass(frozen=True)
class Judged:
    """One case. `lists` is None where there was no answer, and then `error` says why."""

    name: str
    source: str  # the form in which it was asked
    prompt: PromptVerdict
    prompt_note: str = ""  # where it differs
    lists: Lists | None = None
    error: str = ""
    dropped: int = 0  # items of its history that did not fit

    def problem(self, bounds: Bounds) -> str:
        """The first thing that is wrong with it, else empty. Where an overlap is enough, lists may differ."""
        if self.error or self.prompt_note:
            return self.error or f"prompt: {self.prompt_note}"
        assert self.lists is not None, "no answer and no error"
        lists = self.lists
        if lists.illegal_ours or lists.double_ours:
            return f"ours holds {lists.illegal_ours} illegal and {lists.double_ours} double beams"
        if bounds.overlap is not None:
            return ""
        off = lists.score_difference
        if not lists.problem and off is not None and off > bounds.tolerance:
            return f"scores differ by up to {off:.2g}"
        return lists.problem


class CaseJudge:
    """Asks a deployment; renders prompts itself, from the files that the deployment was started with."""

    def __init__(self, served: Served, renderer: Renderer, terms: Terms) -> None:
        self._served, self._renderer, self._terms = served, renderer, terms
        self._is_item = SidTable(renderer.catalog.sids).holds

    def judge(self, case: Case) -> Judged:
        """Of one case. A prompt that differs makes no list: then theirs is asked for by its token ids."""
        try:
            ours = self._renderer.render(case)
        except (CatalogError, ConfigError, RequestError) as error:
            return Judged(case.name, case.source, "not compared", error=str(error))
        theirs = None if case.source == "prompt_ids" else case.said.prompt_ids
        note = first_difference(ours, theirs, self._renderer.tokenizer) if theirs is not None else ""
        prompt: PromptVerdict = "not compared" if theirs is None else "differs" if note else "same"
        try:
            answer = self._served.ask_ids(case) if note else self._served.ask(case)
        except RequestError as error:
            return Judged(case.name, case.source, prompt, note, error=error.message)
        if not note and answer.meta_info.prompt_tokens != len(ours):
            note = f"{answer.meta_info.prompt_tokens} tokens were served, {len(ours)} are rendered here"
            prompt = "differs"
        lists = self._lists(case, answer)
        return Judged(case.name, case.source, prompt, note, lists, dropped=answer.meta_info.dropped_items)

    def _lists(self, case: Case, answer: Answer) -> Lists:
        ours: Ranked = [
            (tuple(beam.output_ids), self._terms.of(beam.meta_info)) for beam in answer.meta_info.beam_results
        ]
        return compare(ours, [self._theirs(beam) for beam in case.beams], self._is_item, case.width)

    def _theirs(self, beam: Beam) -> tuple[Sid | None, float | None]:
        tokens, score = beam
        if isinstance(tokens, str):
            tokens = self._renderer.tokenizer.encode(tokens, add_special_tokens=False).ids
        return self._terms.sid(tokens), score
