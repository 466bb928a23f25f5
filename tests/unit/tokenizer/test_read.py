"""Tokenizers from every set of files that checkpoints come with: the ids that training had, or an error."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_tokenizers import WORDS, of_qwens_kind
from tokenizers import AddedToken, Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from xgr_runtime.errors import ModelError
from xgr_runtime.tokenizer import around, read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIDS = [f"<{level}_{code}>" for level in "ab" for code in range(12)]
TEXTS = [
    "<a_1><b_2>",
    "the <a_11>, <b_0> and <a_1> what",
    " <a_3>  <b_3> ",
    "12345 größer 你好\n\n<b_11>",
    "<a_12><a_1",
]


def qwen(folder: Path, added: list[str] = SIDS) -> Tokenizer:
    """A small tokenizer of Qwen's kind with SIDs added: tokenizer.json, vocab.json and merges.txt."""
    tokenizer = of_qwens_kind()
    tokenizer.model.save(str(folder))
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>"})
    return tokenizer


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


def numbered(tokenizer: Tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}


def move_added(folder: Path, tokenizer: Tokenizer, to: str) -> None:
    """Added tokens are named by `to` alone, as older versions of transformers leave them."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["added_tokens"] = []
    write(folder, "tokenizer.json", whole)
    if to == "added_tokens.json":
        write(folder, to, numbered(tokenizer))
        return
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    named = {
        str(n): {"content": t, "special": t == "<|end|>", **flags} for t, n in numbered(tokenizer).items()
    }
    fields = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|end|>", "added_tokens_decoder": named}
    write(folder, "tokenizer_config.json", fields)


def read(folder: Path) -> Tokenizer:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def all_ids(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("parts", ["tokenizer.json", "vocab.json and merges.txt"])
@pytest.mark.parametrize("named", ["tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_may_be_named_elsewhere(parts: str, named: str, tmp_path: Path) -> None:
    trained = qwen(tmp_path)
    right = all_ids(trained)
    move_added(tmp_path, trained, named)
    if parts != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    found = read(tmp_path)
    assert all_ids(found) == right
    assert [AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] for text in TEXTS] == right
    assert found.decode(right[3], skip_special_tokens=False) == TEXTS[3]


def test_ids_that_no_file_names_stay_unused(tmp_path: Path) -> None:
    """A checkpoint whose SIDs begin at a round id, after tokens that only its training code knew."""
    trained = qwen(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    first = trained.get_vocab_size() + 100
    write(tmp_path, "added_tokens.json", {token: first + n for n, token in enumerate(SIDS)})
    found = read(tmp_path)
    assert found.encode("<a_0><b_11>").ids == [first, first + 23]
    assert found.encode(WORDS[0]).ids == trained.encode(WORDS[0]).ids


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("added_tokens.json", {"<a_0>": 999}, "says that '<a_0>' is token 999"),
        ("added_tokens.json", {"<a_0>": 1 << 30, "<new>": 1 << 30}, "keep the one that training used"),
        ("added_tokens.json", {"<new>": "7"}, "it must be a whole number"),
        ("added_tokens.json", ["<new>"], "must hold a JSON object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "<new>"}}, "correct it"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "it must be an object"),
        ("special_tokens_map.json", "{", "cannot be read as JSON"),
        ("tokenizer.json", {"model": {}}, "is not a tokenizer"),
    ],
)
def test_files_that_disagree_or_are_damaged(file: str, value: Any, said: str, tmp_path: Path) -> None:
    qwen(tmp_path)
    (tmp_path / file).write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(ModelError, match=said) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "config", "said"),
    [
        (
            "tokenizer.json",
            {"tokenizer_class": "OddTokenizer"},
            "class OddTokenizer cuts a text is not known",
        ),
        ("tokenizer.json", {}, "without a name"),
    ],
)
def test_parts_of_an_unknown_tokenizer(gone: str, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    qwen(tmp_path)
    (tmp_path / gone).unlink()
    write(tmp_path, "tokenizer_config.json", config)
    with pytest.raises(ModelError, match=f"{said}.*save a tokenizer.json"):
        read_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize("left", ["truncation", "padding", "both"])
def test_what_a_trainer_left_switched_on_is_no_part_of_it(left: str, tmp_path: Path) -> None:
    tokenizer = qwen(tmp_path)
    right = all_ids(tokenizer)
    if left != "padding":
        tokenizer.enable_truncation(2)
    if left != "truncation":
        tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert all_ids(read(tmp_path)) == right


@pytest.mark.parametrize(
    ("single", "before", "behind"),
    [
        ("$A", [], []),
        ("<|end|> $A", ["<|end|>"], []),
        ("$A <a_0> <|end|>", [], ["<a_0>", "<|end|>"]),
        ("<a_0> <|end|> $A <a_1>", ["<a_0>", "<|end|>"], ["<a_1>"]),
    ],
)
def test_what_is_around_a_text(single: str, before: list[str], behind: list[str], tmp_path: Path) -> None:
    tokenizer = qwen(tmp_path)
    words = list(numbered(tokenizer).items())
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=words)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"bos_token_id": 0})
    found = around(read(tmp_path))
    assert found == tuple([tokenizer.token_to_id(token) for token in part] for part in (before, behind))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SentencePiece model of Llama's kind, and SIDs behind its vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        hard_vocab_limit=False,
        model_type=request.param,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    size = processor.get_piece_size()
    decoder = {str(size + n): {"content": token, "normalized": True} for n, token in enumerate(SIDS)}
    write(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "added_tokens_decoder": decoder},
    )
    return folder


def as_sentencepiece_does(folder: Path, text: str) -> list[int]:
    """Begin, then each part between SIDs by SentencePiece itself, as a text of its own."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = [processor.bos_id()]
    for part in re.split(r"(<[ab]_\d+>)", text):
        if part in SIDS:
            ids.append(processor.get_piece_size() + SIDS.index(part))
        else:
            ids += processor.encode(part)
    return ids


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.sampled_from([*SIDS, *" ,.tahe\nü你\t", "  ", *WORDS]) | st.text(max_size=6), max_size=12
    )
)
def test_every_part_is_what_sentencepiece_makes_of_it(pieces: Path, parts: list[str]) -> None:
    text = "".join(parts)
    assume(not any(token in text for token in ("<s>", "</s>", "<unk>", "\u2581")))
    assert read(pieces).encode(text).ids == as_sentencepiece_does(pieces, text)


def test_only_the_first_part_gets_a_blank_where_the_settings_say_so(pieces: Path, tmp_path: Path) -> None:
    shutil.copy(pieces / "tokenizer.model", tmp_path)
    settings = json.loads((pieces / "tokenizer_config.json").read_text())
    write(tmp_path, "tokenizer_config.json", settings | {"legacy": False, "add_eos_token": True})
    found = read(tmp_path)
    assert "".join(found.encode("the<a_0>the").tokens) == "<s>▁the<a_0>the</s>"
    assert "".join(read(pieces).encode("the<a_0>the").tokens) == "<s>▁the<a_0>▁the"


@pytest.mark.parametrize("cut", [0, 1, 100, -3])
def test_a_damaged_model_of_pieces(cut: int, pieces: Path, tmp_path: Path) -> None:
    whole = (pieces / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[:cut])
    with pytest.raises(ModelError, match="is not a tokenizer"):
        read_tokenizer(tmp_path)


def test_pieces_of_a_class_with_ids_of_its_own(pieces: Path, tmp_path: Path) -> None:
    shutil.copy(pieces / "tokenizer.model", tmp_path)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    with pytest.raises(ModelError, match="class XLMRobertaTokenizer does beside SentencePiece is not known"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_that_knows_whole_words_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<a_0>": 1}))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert around(read(tmp_path)) == ([0], [])
