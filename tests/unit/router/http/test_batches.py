"""Several prompts in one body of /generate, as SGLang takes them: each has the answer that it has alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from router.http.batches import MOST_PROMPTS
from xgr_runtime.errors import Overloaded

if TYPE_CHECKING:
    from conftest import FakeDispatch, Server

SIDS = ["<a_0><b_0><c_0>", "<a_1>"]
IDS = [[3, 11], [4, 12, 19]]


def same(one: dict[str, Any]) -> Any:
    return one["meta_info"]["beam_results"], one["meta_info"]["prompt_tokens"]


@pytest.mark.parametrize(("name", "prompts"), [("text", SIDS), ("input_ids", IDS)])
def test_each_has_the_answer_that_it_has_alone(
    server: Server, dispatch: FakeDispatch, name: str, prompts: list[Any]
) -> None:
    plain = {"sampling_params": {"n": 3}, "filters": {"deny": ["0"]}}
    alone = [server.generate(**{name: prompt}, **plain).json() for prompt in prompts]
    together = server.generate(**{name: prompts}, **plain).json()
    assert [same(one) for one in together] == [same(one) for one in alone]
    assert len({job.rid for job in dispatch.jobs}) == 4


def test_ids_and_parameters_of_each(server: Server, dispatch: FakeDispatch) -> None:
    own = [{"beam_width": 5, "n": 2}, {"beam_width": 7}]
    answers = server.generate(input_ids=IDS, rid=["one", "two"], sampling_params=own).json()
    assert [one["rid"] for one in answers] == ["one", "two"]
    assert [job.width for job in dispatch.jobs] == [5, 7]


def test_a_long_body(server: Server, dispatch: FakeDispatch) -> None:
    prompts = [[3] * 20] * 60
    server.set(max_body_bytes=1 << 20)
    assert len(server.generate(input_ids=prompts, filters={"deny": ["9" * 300] * 60}).json()) == 60


def test_one_that_fails_fails_all(server: Server, dispatch: FakeDispatch) -> None:
    dispatch.error = Overloaded("full")
    assert server.generate(input_ids=IDS).status_code == 503


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"text": []}, "text", "empty list"),
        ({"input_ids": [[3], "x"]}, "input_ids", "array"),
        ({"text": ["x", 3]}, "text", "str"),
        ({"text": ["x"] * (MOST_PROMPTS + 1)}, "text", "the limit is 64"),
        ({"text": SIDS, "rid": "one"}, "rid", "a list"),
        ({"text": SIDS, "rid": ["one"]}, "rid", "1 entries for 2"),
        ({"text": SIDS, "rid": ["one", "t w o"]}, "rid", "without spaces"),
        ({"text": SIDS, "sampling_params": [{}]}, "sampling_params", "1 entries for 2"),
        ({"text": SIDS, "sampling_params": [{}, {"n": "x"}]}, "sampling_params.n", "int"),
        ({"text": SIDS, "stream": True}, "stream", "one prompt"),
        ({"text": SIDS, "history": ["0"]}, "text", ""),
        ({"input_ids": IDS, "text": SIDS}, "input_ids", "send one of them"),
        ({"text": SIDS, "no": 1}, "no", "not a field"),
        ({"text": "x", "rid": ["one"]}, "rid", "str"),
    ],
)
def test_what_is_wrong_is_named(server: Server, body: dict[str, Any], param: str, said: str) -> None:
    answer = server.generate(**body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and said in error["message"]
