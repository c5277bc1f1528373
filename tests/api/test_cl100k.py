"""Token ids of cl100k_base become the text that OpenAI's own library makes of them."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken

from appliance.api import cl100k
from appliance.errors import InvalidInput

TEXTS = [
    "",
    "hello world",
    "Füße, naïve café: ½ litre",
    "日本語のテキストと한국어",
    "👩‍👩‍👧‍👦 and 🦜",
    "tabs\tand\r\nlines\n\n   spaces",
    "\0NUL\x1b",
    "def f(x: int) -> str:\n    return f'{x!r}'",
]


@pytest.fixture
def encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """OpenAI's tokenizer, which takes its vocabulary from a cache named by the address's sha1."""
    shutil.copy(cl100k.FILE, tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tiktoken.get_encoding("cl100k_base")


def test_the_vocabulary_is_the_one_openai_published() -> None:
    digest = hashlib.sha256(cl100k.FILE.read_bytes()).hexdigest()

    assert digest == "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_being_encoded_by_tiktoken(encoding: tiktoken.Encoding, text: str) -> None:
    assert cl100k.decode(encoding.encode(text)) == text


def test_every_token_is_the_same_as_in_tiktoken(encoding: tiktoken.Encoding) -> None:
    blob, ends = cl100k._vocabulary()

    ours = [cl100k._token(each, blob, ends) for each in range(100256)]

    assert ours == encoding.decode_tokens_bytes(list(range(100256)))


def test_special_tokens_are_text_too(encoding: tiktoken.Encoding) -> None:
    assert {cl100k.decode([each]): each for each in cl100k.SPECIAL} == encoding._special_tokens


def test_a_character_cut_in_two_becomes_a_replacement_character(encoding: tiktoken.Encoding) -> None:
    first_half = encoding.encode("🦜")[:1]

    assert cl100k.decode([*first_half, *encoding.encode(" ok")]) == encoding.decode(first_half) + " ok"
    assert "\ufffd" in cl100k.decode(first_half)


@pytest.mark.parametrize("token", [-1, 100256, 100261, 100275, 100277, 2**63])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InvalidInput, match=str(token)):
        cl100k.decode([15339, token])


def test_nothing_is_read_before_the_first_token_array_comes() -> None:
    code = "from appliance.api import cl100k, openai; print(cl100k._vocabulary.cache_info().currsize)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "0"
