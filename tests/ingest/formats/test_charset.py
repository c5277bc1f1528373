"""Texts that are not UTF-8 and do not say what they are."""

# ruff: noqa: RUF001  # letters of other scripts look like ours

import random
import struct
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.ingest.formats.charset import recognised
from appliance.ingest.formats.detect import Kind
from appliance.ingest.parse import Parsed, parse

RUSSIAN = "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью."
CHINESE = "我们在北京大学学习自然语言处理。人人生而自由，在尊严和权利上一律平等。"
FOREIGN = [
    (RUSSIAN, "cp1251"),
    (RUSSIAN, "koi8-r"),
    (RUSSIAN, "iso8859-5"),
    ("Привет мир, это русский текст", "cp1251"),
    ("Привет мир, это русский текст", "koi8-r"),
    ("Всі люди народжуються вільними і рівними у своїй гідності та правах", "koi8-u"),
    (CHINESE, "gbk"),
    ("我们在北京大学学习自然语言处理", "gb2312"),
    ("人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心。", "big5"),
    ("東京は日本の首都です。これは長い文章です。", "shift_jis"),
    ("カタカナのテキストとひらがな、それから漢字もあります。", "shift_jis"),
    ("東京は日本の首都です。これは長い文章です。", "euc_jp"),
    ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.", "euc_kr"),
    ("Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.", "iso8859-2"),
    ("Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.", "cp1250"),
    ("Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.", "iso8859-2"),
    ("Minden emberi lény szabadon születik és egyenlő méltósága és joga van.", "iso8859-2"),
    ("Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.", "cp1254"),
    ("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια", "cp1253"),
    ("Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια", "iso8859-7"),
    ("כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם", "cp1255"),
    ("يولد جميع الناس أحرارا متساوين في الكرامة والحقوق", "cp1256"),
    ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์", "cp874"),
    ("hello otter utf16 le no bom", "utf-16-le"),
    ("wide", "utf-16-le"),
    ("Größe", "utf-16-be"),
    ("Wszyscy ludzie rodzą", "utf-16-be"),
    (RUSSIAN, "utf-16-le"),
    (RUSSIAN, "utf-16-be"),
    (CHINESE, "utf-16-le"),
    ("東京は日本の首都です。これは長い文章です。カタカナもあります。", "utf-16-be"),
]
WORDS = (
    "café Zürich Genève Müller Größe naïve São Besançon Córdoba José Malmö Ålesund Århus brûlée façade señor niño "
    "année €5 20°C ½ © ® “quoted” it’s – … Straße später können Ærø øl Þór Ísland piñata résumé déjà hôtel où ça à"
)
WESTERN = WORDS.split()


def text(body: bytes) -> Parsed:
    return parse(body, media_type="text/plain")


@pytest.mark.parametrize(("words", "encoding"), FOREIGN)
def test_an_encoding_that_nobody_tells_is_recognised(words: str, encoding: str) -> None:
    parsed = text(words.encode(encoding))

    assert parsed.text == words
    assert "was taken for" in str(parsed.metadata["note"])


@pytest.mark.parametrize("times", [1, 3, 1000])
@pytest.mark.parametrize("word", [word for word in WESTERN if not word.isascii()])
def test_a_western_text_stays_one(word: str, times: int) -> None:
    for words in (
        f"{word} " * times,
        f"The quick fox jumps over the lazy dog. {word} " * times,
        f"1;{word};2\n" * times,
    ):
        parsed = text(words.encode("cp1252"))

        assert (parsed.text, parsed.metadata) == (words, {})


def test_western_words_in_any_order_stay_western() -> None:
    rng = random.Random(2)  # noqa: S311  # no secret
    for _ in range(200):
        words = " ".join(rng.sample(WESTERN, rng.randrange(3, 15)))

        assert text(words.encode("cp1252")).text == words


@pytest.mark.parametrize(
    ("body", "declared", "expected"),
    [
        (RUSSIAN.encode(), "", RUSSIAN),
        (RUSSIAN.encode("koi8-r"), "koi8-r", RUSSIAN),
        (RUSSIAN.encode("cp1251"), "utf-8", RUSSIAN),
        (RUSSIAN.encode() + b"\xff", "", RUSSIAN + "\ufffd"),
        (CHINESE.encode("gbk") + b"\xff.", "gbk", CHINESE + "\ufffd."),
    ],
    ids=["utf-8", "declared", "declared wrongly", "damaged", "declared and damaged"],
)
def test_what_is_told_counts_where_it_is_true(body: bytes, declared: str, expected: str) -> None:
    assert parse(body, media_type=f"text/plain; charset={declared}").text == expected


def test_the_part_that_tells_is_found_in_a_long_text() -> None:
    for gap in ("plain words\n" * 20_000, "word " * 40_000):
        assert text((gap + RUSSIAN).encode("cp1251")).text == gap + RUSSIAN


@pytest.mark.parametrize(
    ("name", "before"), [("x.md", "# "), ("x.html", "<p>"), ("x.csv", "a,b\n1,"), ("x.py", "# "), ("x.jsonl", '"')]
)
def test_other_formats_of_text_are_recognised(name: str, before: str) -> None:
    body = (before + RUSSIAN + ('"' if before == '"' else "")).encode("cp1251")

    assert RUSSIAN in parse(body, name=name).text


def test_a_page_is_what_it_declares() -> None:
    page = f"<meta charset=windows-1251><p>{RUSSIAN}".encode("cp1251")

    assert recognised(page, Kind("text/html")) == Kind("text/html")
    assert parse(page, name="x.html").metadata == {}


NUMBERS = random.Random(1)  # noqa: S311  # no secret


@pytest.mark.parametrize(
    "body",
    [
        NUMBERS.randbytes(5000),
        struct.pack("<5000H", *(NUMBERS.randrange(1000, 1300) for _ in range(5000))),
        struct.pack("<5000H", *(NUMBERS.randrange(32, 330) for _ in range(5000))),
        struct.pack("<5000I", *range(5000)),
        struct.pack("<5000f", *(NUMBERS.random() for _ in range(5000))),
        "wide text".encode("utf-16-le") + b"\0",
        "text".encode("utf-32-le"),
        b"\0\1" * 500,
    ],
    ids=["random", "shorts", "small shorts", "ints", "floats", "odd", "four bytes", "ones"],
)
def test_numbers_are_no_text(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="not text"):
        text(body)


@pytest.mark.parametrize(
    "body",
    [b"\xff" * 2**26, b"\xe9\x20" * 2**25, bytes(range(0x81, 0x100)) * 2**19, b"\x41\x04" * 2**25, b"a" * 2**26,
     "й".encode() * 2**25, "я ".encode("cp1251") * 2**25],
    ids=["ff", "accents", "every", "wide", "ascii", "utf-8", "cyrillic"],
)  # fmt: skip
def test_a_large_text_is_looked_at_in_seconds(body: bytes) -> None:
    started = time.process_time()

    recognised(body, Kind("text/plain"))

    assert time.process_time() - started < 10


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at(body: bytes) -> None:
    kind = recognised(body, Kind("text/plain"))

    assert kind.media_type == "text/plain"
    assert bool(kind.charset) == bool(kind.note)


def test_what_it_takes_to_guess_is_imported_where_there_is_something_to_guess() -> None:
    program = (
        "import sys\n"
        "from appliance.ingest.parse import parse\n"
        "parse('naïve → 文'.encode(), media_type='text/markdown')\n"
        "parse('wide'.encode('utf-16-le'), media_type='text/plain')\n"
        "print('chardet' in sys.modules, 'yaml' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "False False\n"
