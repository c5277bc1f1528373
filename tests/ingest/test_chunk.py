import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.catalog.records import Strategy
from appliance.ingest.chunk import WIDEST, WINDOW, Passage, chunked, embedded, room

STRATEGIES: list[Strategy] = ["structure", "sentences", "fixed", "code"]

_PIECE = re.compile(r"[a-zA-Z0-9]{1,4}|\S")


def spans(text: str) -> list[tuple[int, int]]:
    """Tokens like those of a model: up to four letters, or one other sign."""
    return [found.span() for found in _PIECE.finditer(text)]


def words(text: str) -> list[tuple[int, int]]:
    """Tokens like those of an engine that reads no punctuation."""
    return [found.span() for found in re.finditer(r"[a-zA-Z0-9]{1,4}", text)]


def texts(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def markdown(text: str, *, size: int, overlap: int = 0, title: str = "") -> list[Passage]:
    return chunked(text, spans=spans, size=size, overlap=overlap, media_type="text/markdown", title=title)


def plain(text: str, *, size: int, overlap: int = 0) -> list[Passage]:
    return chunked(text, spans=spans, size=size, overlap=overlap, media_type="text/plain")


def check(text: str, passages: list[Passage], *, size: int, overlap: int) -> None:
    covered = 0
    for place, passage in enumerate(passages):
        assert passage.text == text[passage.start : passage.end]
        assert passage.text.strip()
        assert passage.tokens == len(spans(passage.text))
        assert passage.tokens + len(spans(passage.header)) + len(spans(passage.columns)) <= size
        assert not text[covered : passage.start].strip(), "nothing is left out"
        if place:
            assert passages[place - 1].start < passage.start
            assert passages[place - 1].end < passage.end
            repeated = text[passage.start : max(passage.start, passages[place - 1].end)]
            assert len(spans(repeated)) <= overlap
        covered = passage.end
    assert not text[covered:].strip()


_parts = st.sampled_from(
    [
        "a word", " ", "\n", "\n\n", "\n\n\n", "# Title\n", "\n## Part one\n\n", "\nUnder\n---\n", "```\n", "\n```\n",
        "    code(x)\n", "\n| a | b |\n", "- item\n", "1. one\n", "A sentence. ", "Dr. Who? ", "e.g. this. ", "Ab! ",
        "文書を探す。", "日本語の文章", "किताब। ", "verylongwordwithoutanyspaces" * 8,
        "\U0001f469\u200d\U0001f467\u200d\U0001f466", "e\u0301" * 9, "\t", "\x1c", "\u2028",
        "| a | b |\n|---|---|\n| c | d |\n", "\ndef f(x):\n    return x\n", "\nclass A:\n    def g(self):\n",
        "        # why\n", "\nint main() {\n", "}\n", "שלום עולם. ", "هل هذا؟ ", "\U0001f1e9\U0001f1ea",
    ]
)  # fmt: skip


@given(
    text=st.one_of(st.lists(_parts, max_size=60).map("".join), st.text(max_size=400)).map(
        lambda text: text.replace("\r", "")
    ),
    size=st.integers(8, 60),
    overlap=st.integers(0, 20),
    media_type=st.sampled_from(["text/plain", "text/markdown", "text/html"]),
    strategy=st.sampled_from(STRATEGIES),
)
@settings(max_examples=250, deadline=None)
def test_every_visible_character_is_in_a_passage_that_fits(
    text: str, size: int, overlap: int, media_type: str, strategy: Strategy
) -> None:
    passages = chunked(text, spans=spans, size=size, overlap=overlap, media_type=media_type, strategy=strategy)

    check(text, passages, size=size, overlap=overlap)


_sparse = st.tuples(
    st.sampled_from(
        [
            "word ", "a ", "averylongword", "A sentence. ", "\n\n", "\n", " ", "\n# Title\n", "\n# - - -", "\n```\n",
            "\n- ", "\u200b", "\u200b ", "\u0301", ". ", ".", "--- | ", "\n| ", "\n----------\n", "\n    ",
            "\U0001f469\u200d", "。",
        ]
    ),
    st.integers(1, 4) | st.integers(1, 400),
)  # fmt: skip


@given(
    text=st.lists(_sparse, max_size=16).map(lambda parts: "".join(piece * times for piece, times in parts)),
    size=st.integers(8, 60),
    overlap=st.integers(0, 30),
    media_type=st.sampled_from(["text/plain", "text/markdown"]),
    strategy=st.sampled_from(STRATEGIES),
)
@settings(max_examples=250, deadline=None)
def test_passages_grow_with_the_text_and_no_faster_where_tokens_are_few(
    text: str, size: int, overlap: int, media_type: str, strategy: Strategy
) -> None:
    passages = chunked(text, spans=words, size=size, overlap=overlap, media_type=media_type, strategy=strategy)

    most = len(words(text)) / size + len(text) / (size * WIDEST)
    assert len(passages) <= 4 + 8 * most
    covered = 0
    for place, passage in enumerate(passages):
        assert passage.text == text[passage.start : passage.end]
        assert len(words(passage.text)) <= passage.tokens <= size
        assert len(passage.text) <= size * WIDEST
        assert len(passage.header) + len(passage.columns) <= size * WIDEST // 4
        assert not text[covered : passage.start].strip(), "nothing is left out"
        if place:
            assert passages[place - 1].start < passage.start
            assert passages[place - 1].end < passage.end
            repeated = text[passage.start : max(passage.start, passages[place - 1].end)]
            assert len(words(repeated)) <= overlap
            assert len(repeated) <= overlap * WIDEST
        if place > 1:
            assert passages[place - 2].end <= passage.start, "nothing is in three passages"
        covered = passage.end
    assert not text[covered:].strip() or not words(text)


@pytest.mark.parametrize("size", [20, 240])
@pytest.mark.parametrize("overlap", [0, 8, 32, 120])
@pytest.mark.parametrize(
    "text",
    [
        "hello " + "\u200b " * 8000 + "bye",
        "hello " + ". " * 8000 + "bye",
        "| a | b |\n|" + " --- |" * 1500 + "\n| c | d |\n",
        "First.\n\n" + "----------\n" * 1500 + "last",
        ("word " + "\u200b " * 30) * 500,
        "# " + "- " * 5000 + "\n" + "word " * 3000,
        ("a" + "\u0301" * 5000 + " ") * 4,
        ("| a " + ". " * 60 + "\n") * 150,
        "```\n" + ("a " + ". " * 60 + "\n") * 150 + "```\n",
    ],
    ids=["zero width", "dots", "table rule", "dashes", "words", "heading", "accents", "rows", "code"],
)
def test_a_small_text_with_few_tokens_stays_small(text: str, size: int, overlap: int) -> None:
    passages = chunked(text, spans=words, size=size, overlap=overlap, media_type="text/markdown")

    assert sum(len(passage.text) + len(passage.header) for passage in passages) <= 2.5 * len(text)
    assert len(passages) <= 4 + 5 * (len(words(text)) / size + len(text) / (size * WIDEST))


@pytest.mark.parametrize("text", ["\u200b" * 300_000, "\u0301" * 300_000, "<" * 500_000, "# " * 100_000, ". " * 8000])
def test_a_long_text_in_which_no_token_is_found_has_no_passages(text: str) -> None:
    assert chunked(text, spans=words, size=240, overlap=32, media_type="text/markdown") == []


def test_a_short_text_in_which_no_token_is_found_is_one_passage() -> None:
    assert chunked(" ?!\n", spans=words, size=240, overlap=32) == [Passage(0, 3, " ?!", 0, "")]


def test_nothing_is_repeated_before_the_first_token_nor_where_there_is_none() -> None:
    text = "\u200b" * 1000 + " one two " + "\u200b" * 1000

    passages = chunked(text, spans=words, size=20, overlap=8)

    assert sum(passage.tokens for passage in passages) == 2
    assert all(before.end <= after.start for before, after in pairwise(passages))


def test_an_indentation_longer_than_a_passage_is_left_out() -> None:
    text = "one\n" + " " * 10_000 + "two\n    three"

    assert texts(plain(text, size=8)) == ["one", "two\n    three"]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n"])
def test_a_text_without_words_has_no_passages(text: str) -> None:
    assert plain(text, size=50) == []


def test_a_text_that_fits_is_one_passage() -> None:
    text = "\n# One\n\nShort.\n\n# Two\n\nShort too.\n"

    passages = markdown(text, size=50)

    assert texts(passages) == ["# One\n\nShort.\n\n# Two\n\nShort too."]
    assert passages[0].header == ""


def test_a_passage_ends_before_a_heading_rather_than_later_in_a_paragraph() -> None:
    text = "# One\n\n" + "word " * 20 + "\n\n# Two\n\n" + "term " * 25

    passages = markdown(text, size=40)

    assert [passage.text.split()[1] for passage in passages] == ["One", "Two"]


def test_a_heading_stays_with_what_follows_it() -> None:
    text = "word " * 26 + "\n\n# A question? Or two.\n\n## Under it\n\n" + "term " * 20

    passages = markdown(text, size=30)

    assert all(not passage.text.endswith(("two.", "Under it")) for passage in passages)
    assert passages[1].text.startswith("# A question? Or two.\n\n## Under it\n\nterm")


def test_passages_end_with_paragraphs_then_with_sentences_then_with_words() -> None:
    paragraphs = plain("Aa bb cc dd. Ee ff gg hh.\n\nIi jj kk ll mm. Nn oo pp qq rr ss tt.", size=16)
    sentences = plain("Aa bb cc dd ee ff. Gg hh ii jj kk ll mm nn oo pp.", size=16)
    words = plain("aa bb cc dd ee ff gg hh ii jj kk ll mm nn", size=8)

    assert paragraphs[0].text.endswith("hh.")
    assert texts(sentences) == ["Aa bb cc dd ee ff.", "Gg hh ii jj kk ll mm nn oo pp."]
    assert texts(words) == ["aa bb cc dd ee ff gg hh", "ii jj kk ll mm nn"]


@pytest.mark.parametrize(
    "text", ["as Dr. Watson said", "see fig. 3 for it", "J. S. Bach wrote", "e.g. in Rome", "v1. then"]
)
def test_an_abbreviation_ends_no_sentence(text: str) -> None:
    passages = plain(f"Aa bb cc. {text} of it and so on. " + "Dd ee ff. " * 4, size=14, overlap=0)

    assert not any(re.search(r"(?:\b[JSv]\d?|Dr|fig|e\.g)\.$", passage.text) for passage in passages)


def test_a_code_block_that_fits_is_kept_whole_and_with_its_heading() -> None:
    code = "```python\ndef f(x):\n    y = 1. Then\n\n    return x\n```"
    text = "Intro text here. " * 8 + f"\n\n## Example\n\n{code}\n\n" + "More text. " * 30

    for size in range(36, 70):
        passages = markdown(text, size=size, overlap=6)

        check(text, passages, size=size, overlap=6)
        assert any(f"## Example\n\n{code}" in passage.text for passage in passages), size


def test_a_code_block_that_is_too_long_is_cut_between_its_lines() -> None:
    text = "Before.\n\n```\n" + "".join(f"    call({n}, {n})\n" for n in range(40)) + "```\n\nAfter."

    passages = markdown(text, size=40, overlap=10)

    check(text, passages, size=40, overlap=10)
    assert all(passage.text.startswith(("Before", "    call(", "After")) for passage in passages)


def test_rows_of_a_table_are_not_cut() -> None:
    text = "Facts. More facts.\n\n" + "".join(f"| name {n} | value. Of {n} |\n" for n in range(30))

    passages = markdown(text, size=30)

    assert all(passage.text.endswith(("|", ".")) and passage.text.startswith(("|", "Facts")) for passage in passages)


def test_lines_without_sentences_are_cut_between_lines() -> None:
    text = "".join(f"{n:04},aa bb cc\n" for n in range(50))

    assert all(re.fullmatch(r"(?:\d{4},aa bb cc\n?)+", passage.text) for passage in plain(text, size=23))


def test_the_last_two_passages_share_what_is_left() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(26))

    passages = plain(text, size=200)

    assert len(passages) == 2
    assert min(passage.tokens for passage in passages) > 70


def test_whole_sentences_are_repeated() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(40))

    passages = plain(text, size=60, overlap=15)

    check(text, passages, size=60, overlap=15)
    for before, after in pairwise(passages):
        assert before.end > after.start
        assert after.text.startswith("Sentence")


def test_words_are_repeated_where_a_sentence_is_too_long_for_it() -> None:
    passages = plain("word " * 100, size=20, overlap=5)

    assert [passage.start // 5 for passage in passages[:3]] == [0, 15, 30]


def test_nothing_is_repeated_across_a_heading() -> None:
    text = "# One\n\n" + "Text of one. " * 9 + "\n\n# Two\n\n" + "Text of two. " * 9

    passages = markdown(text, size=50, overlap=12)

    assert passages[1].text.startswith("# Two")


def test_passages_know_the_headings_above_them() -> None:
    body = "Some text that goes on. " * 12
    text = f"# Guide\n\n{body}\n\n## Install #\n\n{body}\n\nOn Linux\n--------\n\n{body}\n\n# Use\n\n{body}"

    passages = markdown(text, size=60, title="guide")

    assert [passage.header for passage in passages if passage.text.startswith("## Install")] == [""]
    assert {passage.header for passage in passages} == {"", "Install", "On Linux", "Use"}
    assert all(len(spans(passage.header)) + passage.tokens <= 60 for passage in passages)


def test_a_longer_path_of_headings_is_joined() -> None:
    text = "# A\n\n## B\n\n" + "Some text that goes on. " * 30

    assert markdown(text, size=60)[1].header == "A > B"


def test_headings_too_long_for_a_header_are_left_out() -> None:
    text = "# " + "long heading " * 10 + "\n\n## Short\n\n" + "Some text that goes on. " * 30

    assert {passage.header for passage in markdown(text, size=60)[1:]} == {"Short"}


def test_what_looks_like_a_heading_is_text_in_code_and_in_plain_text() -> None:
    code = markdown("```\n# no heading\n```\n\n" + "word " * 80, size=30)
    text = plain("# no heading\n\n" + "word " * 80, size=30)

    assert {passage.header for passage in code + text} == {""}


def test_chinese_is_cut_at_sentence_ends_and_signs_without_any_space() -> None:
    sentences = "这是一个句子。" * 20
    signs = "没有标点的很长的文字" * 20

    assert all(passage.text.endswith("。") for passage in plain(sentences, size=16))
    assert [len(passage.text) for passage in plain(signs, size=16)][:-2] == [16] * 11


def test_a_cut_inside_a_word_keeps_graphemes_whole() -> None:
    passages = plain("e\u0301" * 100, size=9)

    assert all(len(passage.text) % 2 == 0 for passage in passages)


def test_a_word_is_only_cut_if_it_is_longer_than_a_passage() -> None:
    passages = plain("one two " + "abcd" * 20 + " three four", size=10)

    assert passages[0].text == "one two"
    assert sum(len(passage.text.replace(" ", "")) for passage in passages) == len("onetwothreefour") + 80


def test_one_token_for_a_very_long_word_is_still_cut() -> None:
    passages = chunked("x" * 500_000, spans=lambda text: [(0, len(text))], size=100, overlap=10)

    assert max(len(passage.text) for passage in passages) <= 1600
    assert "".join(texts(passages)).count("x") == 500_000


def test_a_text_longer_than_a_window_is_tokenised_as_if_it_were_in_one_piece() -> None:
    text = "Some words, and more. " * (2 * WINDOW // 20)
    windows: list[int] = []

    def counted(part: str) -> list[tuple[int, int]]:
        windows.append(len(part))
        return spans(part)

    passages = chunked(text, spans=counted, size=200, overlap=0)

    assert len(windows) > 2
    assert max(windows) <= WINDOW
    assert sum(passage.tokens for passage in passages) == len(spans(text))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "text",
    [
        "Some words, and more of them. " * 15_000,
        "# H\n\ntext\n\n" * 45_000,
        "```\n" * 125_000,
        "a.b" * 150_000,
        "." * 500_000,
        "。" * 150_000,
        "#" * 500_000,
        " \n" * 250_000 + "x",
        "\n|" * 200_000,
        "中" * 150_000,
        "a\n---\n" * 75_000,
        "\u200b " * 250_000,
        "e" + "\u0301" * 500_000,
        "# a\n" * 62_500 + "```\n" + "code\n" * 50_000 + "```",
        "a" + " " * 500_000 + "b",
        "| a | b |\n|---|---|\n" + "| c | d |\n" * 10_000,
        "|\n|" + "-" * 100_000 + "x",
        "def f(a):\n" * 10_000,
        "".join(f"{' ' * (n % 200)}def f{n}(a):\n" for n in range(1500)),
        "f(" * 50_000,
        ("public " * 40 + "\n") * 400,
    ],
    ids=[
        "prose",
        "headings",
        "fences",
        "dots",
        "only dots",
        "cjk ends",
        "hashes",
        "blank",
        "rows",
        "cjk",
        "setext",
        "zero width",
        "accents",
        "headings before code",
        "spaces",
        "table",
        "long rule",
        "definitions",
        "definitions inside",
        "calls",
        "words before definitions",
    ],
)
def test_half_a_megabyte_of_anything_is_cut_in_seconds(text: str, strategy: Strategy) -> None:
    kind = "text/plain" if strategy == "code" else "text/markdown"
    text = text if strategy == "structure" else text[-len(text) // 10 :]
    started = time.process_time()

    passages = chunked(text, spans=spans, size=254, overlap=32, media_type=kind, strategy=strategy)

    assert passages
    assert time.process_time() - started < 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_time_grows_with_the_text_and_no_faster(strategy: Strategy) -> None:
    section = (
        "## Otters\n\n" + "Otters hold hands while they sleep, e.g. in kelp. " * 20 + "\n\ndef f(x):\n    return x\n\n"
    )

    def seconds(times: int) -> float:
        started = time.process_time()
        chunked(section * times, spans=spans, size=254, overlap=32, media_type="text/markdown", strategy=strategy)
        return time.process_time() - started

    assert seconds(480) < 8 * max(seconds(120), 0.02)


@pytest.mark.parametrize("overlap", [0, 1, 7, 20])
def test_fixed_windows_have_the_size_and_the_overlap_that_were_asked_for(overlap: int) -> None:
    text = " ".join(f"w{n:03}." for n in range(300))

    passages = chunked(text, spans=spans, size=40, overlap=overlap, strategy="fixed")

    check(text, passages, size=40, overlap=overlap)
    assert {passage.tokens for passage in passages[:-1]} == {40}
    for before, after in pairwise(passages):
        assert len(spans(text[after.start : before.end])) == overlap


def test_fixed_windows_keep_graphemes_whole() -> None:
    text = "\U0001f469\u200d\U0001f467 e\u0301" * 60

    passages = chunked(text, spans=spans, size=9, overlap=3, strategy="fixed")

    check(text, passages, size=9, overlap=3)
    assert all(passage.text[0] not in "\u200d\u0301" and passage.text[-1] != "\u200d" for passage in passages)


def test_sentences_are_grouped_across_paragraphs_and_headings() -> None:
    text = "# One\n\nAa bb cc. Dd ee ff.\n\n# Two\n\nGg hh ii. Jj kk ll.\nMm nn oo. Pp qq rr.\n\nSs tt uu. Vv ww xx."

    passages = chunked(text, spans=spans, size=24, overlap=0, media_type="text/markdown", strategy="sentences")

    check(text, passages, size=24, overlap=0)
    assert all(passage.text.endswith(".") for passage in passages)
    assert "# Two" in passages[0].text
    assert len(passages) == 2


def test_passages_without_headers_use_their_room_for_text() -> None:
    text = "# A heading of some length\n\n" + "Some text that goes on. " * 40

    without = chunked(text, spans=spans, size=60, overlap=0, media_type="text/markdown", header="without")

    assert {passage.header for passage in without} == {""}
    assert {passage.section for passage in without} == {"A heading of some length"}
    assert without[1].tokens > markdown(text, size=60)[1].tokens


def test_the_section_of_a_passage_is_the_path_of_headings_at_its_beginning() -> None:
    body = "Some text that goes on. " * 12
    text = f"Preface.\n\n# Guide\n\n{body}\n\n## Install\n\n{body}\n\n### Linux\n\n{body}\n\n# Use\n\n{body}"

    sections = [passage.section for passage in markdown(text, size=60, title="guide")]

    assert list(dict.fromkeys(sections)) == ["", "Install", "Install > Linux", "Use"]
    assert markdown("# One\n\nShort.", size=60)[0].section == "One"


def test_a_section_is_short_whatever_the_headings_are() -> None:
    text = "".join(f"{'#' * depth} {'long heading ' * 400}\n\n" for depth in range(1, 7)) + "word " * 200

    assert max(len(passage.section) for passage in markdown(text, size=60)) < 1300


def test_a_passage_from_the_middle_of_a_table_is_embedded_with_its_columns() -> None:
    head = "| animal | weight |"
    text = f"# Facts\n\n{head}\n|---|:--:|\n" + "".join(f"| otter {n} | {n} kg |\n" for n in range(40)) + "\nAfter it."

    passages = markdown(text, size=60, overlap=8)

    check(text, passages, size=60, overlap=8)
    assert head in passages[0].text
    assert passages[0].columns == ""
    assert {passage.columns for passage in passages[1:]} == {head}
    assert all(head not in passage.text for passage in passages[1:])
    assert embedded("", passages[1]).startswith(f"Facts\n{head}\n|")


def test_columns_too_wide_for_a_header_and_tables_in_code_are_left_out() -> None:
    rows = "".join(f"| otter {n} | {n} kg |\n" for n in range(40))
    wide = "| " + "a very wide column " * 10 + "|\n|---|\n" + rows
    code = "```\n| animal | weight |\n|---|---|\n" + rows + "```"

    assert {passage.columns for passage in markdown(wide, size=60) + markdown(code, size=60)} == {""}


PYTHON = """import os
import re
import sys

LIMIT = 3
LEAST = 2


# Counts.
@cache
def count(things):
    total = 0
    for thing in things:
        total += thing
    return total


class Otter(Animal):
    age = 3

    def swim(self, metres):
        self.breathe()
        return metres * self.age

    async def sleep(self):
        await self.hands.hold()


print(count([1, 2]))
"""


def test_code_is_cut_before_definitions_with_what_stands_above_them() -> None:
    passages = chunked(PYTHON, spans=spans, size=45, overlap=0, strategy="code")

    check(PYTHON, passages, size=45, overlap=0)
    assert [passage.text.splitlines()[0] for passage in passages] == [
        "import os",
        "# Counts.",
        "class Otter(Animal):",
        "    async def sleep(self):",
    ]


def test_a_passage_of_code_knows_the_definitions_around_it() -> None:
    text = PYTHON.replace("        self.breathe()\n", "        self.breathe()\n" * 20)

    passages = chunked(text, spans=spans, size=45, overlap=0, strategy="code")

    inside = next(passage for passage in passages if passage.text.startswith("        self.breathe()"))
    assert inside.section == "class Otter(Animal) > def swim(self, metres)"
    assert inside.header == "def swim(self, metres)"
    assert next(passage for passage in passages if "# Counts." in passage.text).section == "def count(things)"
    assert chunked(PYTHON + "x = 1\n" * 90, spans=spans, size=45, overlap=0, strategy="code")[-1].section == ""


def test_markdown_is_cut_by_structure_where_code_is_asked_for() -> None:
    text = "# One\n\n" + "class of its own. " * 20

    asked = chunked(text, spans=spans, size=40, overlap=0, media_type="text/markdown", strategy="code")

    assert asked == markdown(text, size=40)


def test_the_title_is_put_in_front_unless_the_passage_begins_with_it() -> None:
    passage = Passage(0, 9, "# Install", 2, "")

    assert embedded("Guide", Passage(0, 4, "Text", 1, "A > B")) == "Guide\nA > B\nText"
    assert embedded("", Passage(0, 4, "Text", 1, "")) == "Text"
    assert embedded("Install", passage) == "# Install"
    assert embedded("Guide", passage) == "Guide\n# Install"
    assert embedded("In", passage) == "In\n# Install"


@pytest.mark.parametrize(("title", "left"), [(0, 254), (20, 234), (126, 128), (127, 128), (5000, 128)])
def test_a_title_takes_room_but_never_more_than_half(title: int, left: int) -> None:
    assert room(256, title_tokens=title) == left
