"""Stems are those of SQLite's tokenizer."""

from sqlalchemy import Connection

from appliance.database import Database
from appliance.search.stems import stem

BEGINNINGS = """
a abl adopt agre allow angular ated bowdler by call can caress cat coll communic conform control cri decis defens depend
differ digit electr en excit fail fall feed feudal fil fizz flat fly formal goodn hast hesit hiss homolog hop hopeful
irrit itsy licen motor oper pla ponies predic prob probat radical rate relate relation replac revis roll run say sens
sing size sky snow ss tan th tie tooth tr triplic trouble val vietnam vile yes zz über naïv
""".split()  # noqa: SIM905 - a list of a hundred words is no easier to read

ENDINGS = """
- s es ies sses ss ed eed ing y e ll l al ational tional enci anci izer logi bli alli entli eli ousli ization ation ator
alism iveness fulness ousness aliti iviti biliti icate ative alize iciti ical ful ness ance ence er ic able ible ant
ement ment ent ion sion tion ou ism ate iti ous ive ize ings edly ying led lled tted nesses eying eed
""".split()  # noqa: SIM905 - same


def test_words_have_the_stems_that_the_word_index_gives_them(database: Database) -> None:
    words = sorted({beginning + ending.strip("-") for beginning in BEGINNINGS for ending in ENDINGS} - {"eed"})

    with database.write() as connection:
        found = _stems(connection, words)

    assert len(words) > 5000
    assert {word: stem(word) for word in words} == found


def _stems(connection: Connection, words: list[str]) -> dict[str, str]:
    run = connection.exec_driver_sql
    run("CREATE VIRTUAL TABLE words USING fts5 (word, tokenize = 'porter unicode61 remove_diacritics 0')")
    run("CREATE VIRTUAL TABLE stems USING fts5vocab (words, 'instance')")
    run("INSERT INTO words (rowid, word) VALUES (?, ?)", list(enumerate(words)))
    return {words[row[1]]: row[0] for row in run("SELECT term, doc FROM stems")}


def test_very_short_and_very_long_words_are_left_as_they_are() -> None:
    assert [stem(word) for word in ("", "as", "is", "x" * 62 + "ing")] == ["", "as", "is", "x" * 62 + "ing"]
