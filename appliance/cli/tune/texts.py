"""Texts to measure with: the same for everyone, made from a seed and a list of common words."""

import random
from collections.abc import Iterator

_LIST = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house friend father power
hour game line end member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment
air teacher force education foot boy age policy music market sense service plan heart light voice figure court
police field rule ground road table season film street model paper space nature source wind stone river bridge
garden winter summer island mountain ocean forest animal engine metal glass energy weight
"""
WORDS = _LIST.split()
"""Each is one token to a BERT tokenizer."""

SHORT = 10
LONG = 62
"""Words of a short sentence and of a passage, the median one."""

_CHUNK = 180
_MIXED = (SHORT, SHORT, LONG, _CHUNK)
"""Half of what is embedded are sentences; the rest are passages, and chunks of documents."""

_SPREAD = {SHORT: 0.45, _CHUNK: 0.2}
"""Standard deviation of the logarithm of the number of words. Short: half of the sentences have 7 to 14 words, one in
twenty 21 and more, as in the STS benchmark's dev set. Where nothing stands, all are equally long."""


def texts(words: int, *, seed: int) -> Iterator[str]:
    """Sentences of about that many words without end, no two alike."""
    source = random.Random(seed)  # noqa: S311  # not for secrets
    while True:
        count = max(2, round(words * source.lognormvariate(0, _SPREAD.get(words, 0.0))))
        yield " ".join(source.choices(WORDS, k=count))


def mixed(*, seed: int) -> Iterator[str]:
    """Sentences, passages and chunks by turns, without end."""
    sources = [texts(words, seed=seed + place) for place, words in enumerate(_MIXED)]
    while True:
        for source in sources:
            yield next(source)
