"""How `xgr prompt` shows tokens."""

from xgr_runtime.cli.prompt import token_lines


def test_lines_break_between_tokens_alone() -> None:
    texts = [" task", "\n\n", "a  b", "\u6839\u636e", "<a_1>", " " * 30]
    tokens = [{"id": 100 + place, "text": text} for place, text in enumerate(texts)]
    for width in (1, 20, 24, 40, 200):
        lines = token_lines(tokens, width)
        assert "  ".join(lines) == "  ".join(f"{token['id']} {token['text']!r}" for token in tokens)
        shown = [f"{token['id']} {token['text']!r}" for token in tokens]
        assert all(len(line) <= width or line in shown for line in lines)


def test_wide_letters_count_twice() -> None:
    tokens = [{"id": 1, "text": "\u6839" * 4}, {"id": 2, "text": "b"}]
    assert len(token_lines(tokens, 18)) == 2 and len(token_lines(tokens, 19)) == 1
