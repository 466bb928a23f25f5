"""What a case comes to, and a run: every way in which either side can be wrong is seen and said."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from small_catalogs import example
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from xgr_runtime.cli.verify import show
from xgr_runtime.cli.verify.cases import Case, CaseLine
from xgr_runtime.cli.verify.judge import Bounds, CaseJudge, Judged
from xgr_runtime.cli.verify.prompts import Renderer, first_difference
from xgr_runtime.cli.verify.report import write_report
from xgr_runtime.cli.verify.served import Served
from xgr_runtime.cli.verify.terms import Terms
from xgr_runtime.cli.verify.totals import shortfalls, total
from xgr_runtime.errors import BadRequest, CatalogError
from xgr_runtime.wire.answers import Answer, BeamMeta, BeamResult, FinishReason, MetaInfo, UnknownItems
from xgr_runtime.wire.messages import Timing

CATALOG = example()
SIDS = [tuple(sid) for sid in CATALOG.sids.tolist()]
STRICT = Bounds(3e-4)
PROMPT = [5, 6, 7]


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({f"w{number}": number for number in range(20)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    return made


def answer(beams: list[tuple[tuple[int, ...], float]], prompt_tokens: int = len(PROMPT)) -> Answer:
    results = [BeamResult(list(sid), [], BeamMeta(score / 3, score)) for sid, score in beams]
    meta = MetaInfo(
        *("", FinishReason("length", 3), prompt_tokens, 0, 3, 0.0, None, None, "", 1),
        *(Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 2, UnknownItems(0, 0, 0), results),
    )
    return Answer("", "", [], [], meta)


class Asked:
    """A deployment that gives that answer, or that error, and remembers how it was asked."""

    def __init__(self, given: Answer | Exception) -> None:
        self.given, self.how = given, ""

    def ask(self, case: Case) -> Answer:
        self.how = case.source
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    def ask_ids(self, case: Case) -> Answer:
        self.ask(case)
        self.how = "ids"
        return cast("Answer", self.given)


class Rendering:
    """Renders that prompt, whatever the case."""

    catalog, tokenizer = CATALOG, tokenizer()

    def __init__(self, prompt: list[int] | Exception) -> None:
        self.prompt = prompt

    def render(self, case: Case) -> list[int]:
        if isinstance(self.prompt, Exception):
            raise self.prompt
        return self.prompt


BEAMS: list[tuple[tuple[int, ...], float]] = [(SIDS[3], -1.0), (SIDS[5], -2.0), (SIDS[1], -3.0)]


def judged(
    given: Answer | Exception | None = None, prompt: list[int] | Exception = PROMPT, **said: Any
) -> tuple[Judged, str]:
    """The finding, and how the deployment was asked."""
    asked = Asked(answer(BEAMS) if given is None else given)
    line = CaseLine(**{"history": ["item-1"], "prompt_ids": PROMPT, **said})
    case = Case("line 1", line, 3, [(list(sid), score) for sid, score in BEAMS])
    judge = CaseJudge(cast("Served", asked), cast("Renderer", Rendering(prompt)), Terms(3, score="sum"))
    return judge.judge(case), asked.how


def test_a_case_that_is_the_same() -> None:
    found, how = judged()
    assert found.problem(STRICT) == "" and found.prompt == "same" and how == "history"
    assert found.lists is not None and found.lists.score_difference == 0.0
    assert found.dropped == 2


def test_a_prompt_that_differs_is_said_and_its_list_is_asked_for_by_their_ids() -> None:
    found, how = judged(prompt=[5, 9, 7])
    assert how == "ids" and found.prompt == "differs"
    assert found.problem(STRICT) == (
        "prompt: token 1 of 3 (theirs has 3): ours 9 in 'w5 w9 w7', theirs 6 in 'w5 w6 w7'"
    )
    assert found.lists is not None and not found.lists.problem


def test_a_served_prompt_that_is_longer_than_the_rendered_one_is_said() -> None:
    found, _ = judged(answer(BEAMS, prompt_tokens=4))
    assert found.problem(STRICT) == "prompt: 4 tokens were served, 3 are rendered here"


def test_without_prompt_ids_prompts_are_not_compared() -> None:
    found, how = judged(prompt_ids=None)
    assert found.prompt == "not compared" and how == "history" and not found.problem(STRICT)


@pytest.mark.parametrize(
    ("given", "prompt", "problem"),
    [
        (BadRequest("history[0] is unknown", "history"), PROMPT, "history[0] is unknown"),
        (None, CatalogError("the template is too long"), "the template is too long"),
        (None, BadRequest("no such variable"), "no such variable"),
    ],
    ids=["refused", "not rendered", "not rendered as a request"],
)
def test_a_case_without_an_answer_says_why(
    given: Exception | None, prompt: list[int] | Exception, problem: str
) -> None:
    found, _ = judged(given, prompt)
    assert found.problem(STRICT) == problem and found.lists is None


@pytest.mark.parametrize(
    ("beams", "problem"),
    [
        ([(SIDS[3], -1.0), (SIDS[3], -2.0), (SIDS[1], -3.0)], "0 illegal and 1 double"),
        ([(SIDS[3], -1.0), ((49, 49, 49), -2.0), (SIDS[1], -3.0)], "1 illegal and 0 double"),
        ([(SIDS[3], -1.0), (SIDS[5], -2.001), (SIDS[1], -3.0)], "scores differ by up to 0.001"),
        ([(SIDS[5], -1.0), (SIDS[3], -2.0), (SIDS[1], -3.0)], "no tie"),
    ],
    ids=["double", "illegal", "score", "order"],
)
def test_every_way_to_be_wrong_is_named(beams: list[tuple[tuple[int, ...], float]], problem: str) -> None:
    found, _ = judged(answer(beams))
    assert problem in found.problem(STRICT)


def test_where_an_overlap_is_enough_only_wrong_beams_of_ours_are_problems() -> None:
    enough = Bounds(3e-4, 0.6)
    other = judged(answer([(SIDS[5], -1.0), (SIDS[3], -2.2), (SIDS[0], -3.0)]))[0]
    assert other.problem(STRICT) and not other.problem(enough)
    assert shortfalls([other], total([other]), enough) == []
    assert shortfalls([other], total([other]), Bounds(3e-4, 0.7)) == [
        "overlap@width is 66.7%, the bound is 70.0%"
    ]
    wrong = judged(answer([(SIDS[5], -1.0), (SIDS[5], -2.0), (SIDS[0], -3.0)]))[0]
    assert wrong.problem(enough)


def test_differences_of_prompts() -> None:
    made = tokenizer()
    assert first_difference([1, 2], [1, 2], made) == ""
    assert first_difference([1, 2], [1, 2, 3], made) == (
        "token 2 of 2 (theirs has 3): ours ends in 'w1 w2', theirs 3 in 'w1 w2 w3'"
    )
    far = first_difference([*range(19), 1], [*range(19), 2], made)
    assert far.startswith("token 19 of 20") and "w12" not in far


def shown(every: list[Judged], bounds: Bounds, dtype: str = "float32", other: str = "float32") -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    totals = total(every)
    console.print(show.table(totals, bounds, 3, "sum"))
    show.remarks(console, totals, bounds, {"dtype": dtype, "other_dtype": other})
    show.verdict(console, shortfalls(every, totals, bounds))
    return cast("io.StringIO", console.file).getvalue()


def test_a_table_of_a_pass() -> None:
    text = shown([judged()[0], judged(prompt_ids=None)[0]], STRICT)
    assert "2 of 2" in text and "1 of 1 the same" in text
    assert " no\n" not in text and text.rstrip().endswith("verified")


@pytest.mark.parametrize(
    ("width", "named"), [(1, "@1"), (3, "@1, @3"), (10, "@1, @10"), (50, "@1, @10, @50")]
)
def test_an_overlap_at_their_width_is_named_once(width: int, named: str) -> None:
    rows = show.rows(total([judged()[0]]), STRICT, width, "sum")
    shown = ", ".join(["100.0%"] * len(named.split()))
    assert (f"overlap{named}", shown, None) in rows


def test_a_table_of_differences_names_the_first_and_counts_the_rest() -> None:
    every = [dataclasses.replace(judged(prompt=[9])[0], name=f"line {number}") for number in range(8)]
    text = shown([*every, judged(BadRequest("[/no markup]"))[0]], STRICT)
    assert "0 of 9 the same; 9 differ" not in text and "1 of 9 the same; 8 differ" in text
    assert "8 of 9" in text and "line 0: prompt: token 0" in text and "line 5" not in text
    assert "and 4 more" in text and text.rstrip().endswith("differs")


def test_nothing_is_as_it_should_be_where_nothing_was_answered() -> None:
    rows = show.rows(total([judged(BadRequest("no"))[0]]), STRICT, 3, "sum")
    marks = {name: good for name, _, good in rows}
    assert marks["answers"] is marks["ranked lists"] is marks["their legal beams"] is False
    assert ("prompts, token by token", "not compared: no case was answered", None) in rows


def test_noise_is_named_and_not_let_pass() -> None:
    noisy = judged(answer([(sid, score - 0.01) for sid, score in BEAMS]))[0]
    text = shown([noisy], STRICT)
    assert "--cases-dtype bfloat16" in text and text.rstrip().endswith("differs")
    assert "the same: overlap@width must be 90.0%" in shown([noisy], Bounds(3e-4, 0.9))
    rounded = shown([noisy], Bounds(3e-4, 0.9), dtype="bfloat16")
    assert "between bfloat16 and" in rounded and "With --dtype float32" in rounded
    for other in ("float16", "bfloat16"):
        assert "With --dtype" not in shown([noisy], Bounds(3e-4, 0.9), dtype="bfloat16", other=other)


def test_a_report_has_every_case(tmp_path: Path) -> None:
    every = [judged()[0], judged(prompt=[9])[0]]
    totals = total(every)
    problems = shortfalls(every, totals, STRICT)
    write_report(tmp_path / "report.json", {"other": "x"}, STRICT, totals, every, problems)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verified"] is False and report["other"] == "x" and len(report["cases"]) == 2
    assert report["cases"][1]["prompt_note"].startswith("token 0") and len(report["problems"]) == 1
    assert report["totals"]["lists_same"] == 2 and report["bounds"]["tolerance"] == 3e-4
