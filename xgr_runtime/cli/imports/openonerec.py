"""OpenOneRec (Kuaishou-OneRec): pid2sid tables, sid2pid.json with counts, tables of messages (RecIF-Bench).

Its evaluation sends each user's own messages through a chat template that ends in `/no_think`, appends the
begin of a SID, and ranks by the sum of the three codes' log-probabilities, nothing masked. Of the items on a
SID it answers one, the most popular.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from xgr_runtime.catalog.columns import Columns
from xgr_runtime.catalog.declared import Declared, Names, unpacked
from xgr_runtime.catalog.sources import read_columns
from xgr_runtime.cli.imports.artefacts import json_object
from xgr_runtime.cli.imports.draft import Draft, Wishes
from xgr_runtime.cli.imports.tables import sids
from xgr_runtime.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from xgr_runtime.cli.imports.artefacts import Artefacts
    from xgr_runtime.cli.imports.checkpoints import TrainedModel

SPELLING = "<s_a_{0}><s_b_{1}><s_c_{2}>"
LEVELS = (8192, 8192, 8192)  # of its tokenizer
ITEMS = 512  # the newest of a user that its prompts hold
_BEGIN, _END = "<|sid_begin|>", "<|sid_end|>"
_RUN = re.compile(r"(?:<\|sid_begin\|>(?:<s_[a-z]_\d+>)+<\|sid_end\|>)+")
_CODES = re.compile(r"<s_a_(\d+)><s_b_(\d+)><s_c_(\d+)>")
# ruff: noqa: RUF001
_SYSTEM = "你是一个智能推荐助手，能够根据用户的浏览历史预测用户可能感兴趣的下一个内容。"
_USER = "根据以下用户浏览记录，请预测用户接下来可能观看的内容：\n{history}"
_ROWS = 2000  # of a table of messages that are looked at
CHAT = "soft_switch.jinja"
CHAT_TEMPLATE = """\
{%- set last = namespace(user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}{{- part.text }}{%- endfor %}
    {%- endif %}
    {%- if loop.index0 == last.user %}
        {{- '/no_think' if enable_thinking is defined and enable_thinking is false else '/think' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

name = "openonerec"
title = "OpenOneRec (RecIF)"


def knows(artefacts: Artefacts) -> bool:
    return bool(artefacts.named("*pid2sid*.parquet", "*sid2pid*.json"))


def read(artefacts: Artefacts, model: TrainedModel, wishes: Wishes) -> Draft:
    form = Declared(wishes.form.sid_format or SPELLING)
    sizes = wishes.form.sid_packed or LEVELS
    counted = artefacts.named("*sid2pid*.json")
    tables = artefacts.named("*pid2sid*.parquet")
    if tables:
        source = artefacts.one("*pid2sid*.parquet")
        columns = read_columns(source, Names(item="pid", sid="sid"))
        found = [f"items and codes of {source}"]
    else:
        source = artefacts.one("*sid2pid*.json")
        columns = _of_counts(source, sizes)
        found = [f"items and codes of {source}"]
    draft = Draft(source, columns, {}, source.name.split("_pid2sid")[0], form, found=found, width=32)
    for path in counted:
        _add_popularity(draft, path, sizes, wishes.popularity)
    draft.templates = _templates(draft, artefacts)
    draft.files = {CHAT: CHAT_TEMPLATE}
    draft.scoring = {"length_penalty": 0.0}
    draft.assumed += [
        f"codes are spelt {form.sid_format}: --sid-format",
        f"its chat template without thinking and the newest {ITEMS} items; the wording differs per user, "
        "so a request may send its own messages: templates in catalog.json",
        "three codes are scored, as a sum; neither begin nor end of a SID is: scoring in catalog.json",
    ]
    return draft


def _of_counts(path: Path, sizes: Sequence[int]) -> Columns:
    """The rows of sid2pid.json alone, in its order."""
    rows = list(_counted(path, sizes))
    return Columns.of_sids(
        path,
        [entry["pid"] for _, _, entry in rows],
        [codes for _, codes, _ in rows],
        lambda row: f"SID {rows[row][0]}",
    )


def _counted(path: Path, sizes: Sequence[int]) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
    """(SID as it stands there, its codes, entry) of each item in sid2pid.json."""
    for packed, entries in json_object(path).items():
        if not packed.isdecimal() or not isinstance(entries, list):
            raise CatalogError(
                f"{path}: {packed!r:.80}: expected a SID as one number, and a list of its items"
            )
        codes = unpacked(int(packed), sizes)
        if codes is None:
            raise CatalogError(
                f"{path}: the SID {packed} is not within {list(sizes)} codes per level: declare them with "
                "--sid-packed"
            )
        for entry in entries:
            if not isinstance(entry, dict) or type(entry.get("pid")) not in (int, str):
                raise CatalogError(
                    f"{path}: the SID {packed} has {entry!r:.80}: it must be an object with a pid"
                )
            yield packed, codes, entry


def _add_popularity(draft: Draft, path: Path, sizes: Sequence[int], field: str) -> None:
    """Items on one SID come in order of `field`. Raises CatalogError where codes or counts are not there."""
    columns = draft.columns
    known = {str(item): list(sid) for item, sid in zip(columns.items, sids(columns), strict=True)}
    counts: dict[str, float] = {}
    strangers = 0
    for packed, codes, entry in _counted(path, sizes):
        item = str(entry["pid"])
        if known.get(item, codes) != codes:
            raise CatalogError(
                f"{path}: the SID {packed} = {codes} has pid {item}, and {draft.source} gives it "
                f"{known[item]}: take both from one release, or declare the codes per level with --sid-packed"
            )
        strangers += item not in known
        count: Any = entry.get(field)
        if type(count) not in (int, float):
            raise CatalogError(
                f"{path}: pid {item} has no number {field!r} (it has {', '.join(sorted(entry))}): choose "
                "one of them with --popularity"
            )
        counts[item] = count
    columns.popularity = [counts.get(str(item)) for item in columns.items]
    draft.found.append(f"popularity ({field}) of {path}")
    draft.assumed.append(f"of the items on one SID the first is the one with most {field}: --popularity")
    if strangers:
        draft.unused.append(f"{strangers} items of {path} that {draft.source.name} lacks")


def _templates(draft: Draft, artefacts: Artefacts) -> dict[str, dict[str, Any]]:
    """One per table of messages, in its most frequent wording; "default" is video's, else the first."""
    known = {tuple(sid) for sid in sids(draft.columns)}
    worded: dict[str, dict[str, Any]] = {}
    for path in artefacts.named("*_test.parquet"):
        if not (found := _wording(path, known)):
            draft.unused.append(
                f"{path}: its prompts are not one list of SIDs in a text; send them as messages"
            )
            continue
        system, user, share, wordings = found
        worded[path.name.removesuffix("_test.parquet")] = _template(system, user)
        draft.messages = draft.messages or path
        draft.found.append(f"the most frequent of {wordings} wordings ({share:.0%}) of {path}")
    first = next((task for task in (draft.dataset, "video", *worded) if task in worded), "")
    if not first:
        draft.assumed.append("the wording of its video task: templates in catalog.json")
    elif worded.keys() - {first}:
        draft.assumed.append(f"the wording of {first}, where a request names no template")
    return {"default": worded.pop(first, _template(_SYSTEM, _USER)), **worded}


def _template(system: str, user: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*messages, {"role": "user", "content": user}],
        "chat_template": CHAT,
        "chat_template_kwargs": {"enable_thinking": False},
        "generation_prefix": _BEGIN,
        "item": f"{_BEGIN}{{sid}}{_END}",
        "separator": "",
        "max_history_items": ITEMS,
    }


def _wording(path: Path, known: set[tuple[int, ...]]) -> tuple[str, str, float, int] | None:
    """(system, user, its share, how many there are) of a table of messages, None if it is something else.

    Raises CatalogError where none of its SIDs is of the catalog.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["messages"]).slice(0, _ROWS)["messages"].to_pylist()
        spoken = [_spoken(json.loads(row) if isinstance(row, str) else row) for row in rows]
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return None
    texts = [(system, user) for system, user in spoken if len(_RUN.findall(user)) == 1]
    if not texts:
        return None
    seen = {tuple(map(int, codes)) for _, user in texts for codes in _CODES.findall(user)}
    if seen and not seen & known:
        raise CatalogError(
            f"{path}: none of its {len(seen)} SIDs is of the catalog: it is of another release; take both "
            "from one, or move it away"
        )
    counted = Counter((_escaped(system), _RUN.sub("{history}", _escaped(user))) for system, user in texts)
    (system, user), times = counted.most_common(1)[0]
    return system, user, times / len(texts), len(counted)


def _spoken(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Text of the system and of the user, whose contents are texts or lists of parts."""
    said = {"system": "", "user": ""}
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        said[message["role"]] = text
    return said["system"], said["user"]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
