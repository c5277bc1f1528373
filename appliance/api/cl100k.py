"""Token ids of OpenAI's cl100k_base vocabulary back to text: LangChain sends those for a model name it does not know.

`cl100k_base.tiktoken` is OpenAI's file of that name, published with tiktoken under the MIT licence (sha256
223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7; each line is a token in base64 and its rank). It lies
beside this module so that nothing is fetched at run time.
"""

from array import array
from binascii import a2b_base64
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from appliance.errors import InvalidInput

FILE = Path(__file__).with_name("cl100k_base.tiktoken")

SPECIAL = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


def decode(ids: Iterable[int]) -> str:
    """The text of token ids; bytes that are no UTF-8, as where a text was cut within a character, become U+FFFD.

    The first call reads the vocabulary (some 50 ms; 1.1 MB stay). Any thread.

    Raises:
        InvalidInput: an id that the vocabulary does not have.
    """
    blob, ends = _vocabulary()
    return b"".join([_token(each, blob, ends) for each in ids]).decode("utf-8", errors="replace")


def _token(token: int, blob: bytes, ends: "array[int]") -> bytes:
    if 0 <= token < len(ends) - 1:
        return blob[ends[token] : ends[token + 1]]
    if token in SPECIAL:
        return SPECIAL[token]
    raise InvalidInput(f"{token} is not a token id of cl100k_base", param="input")


@cache
def _vocabulary() -> tuple[bytes, "array[int]"]:
    """All tokens as one string of bytes, by rank, and where each begins: a list of bytes would take five times more."""
    blob = bytearray()
    ends = array("I", [0])
    for line in FILE.read_bytes().splitlines():
        blob += a2b_base64(line[: line.index(b" ")])
        ends.append(len(blob))
    return bytes(blob), ends
