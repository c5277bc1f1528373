"""The comparison of ways to cut."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from appliance.search.retriever import Found
from appliance.store.base import Chunk

FOLDER = Path(__file__).parent.parent / "scripts" / "benchmark"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return import_module("chunking")
    finally:
        sys.path.remove(str(FOLDER))


def test_the_answers_of_the_sets_are_in_their_documents(program: ModuleType) -> None:
    for made in (program.docstrings(), program.manual(), program.code()):
        texts = {document.id: document.text for document in made.documents}
        assert len(made.questions) > 50
        for question in made.questions:
            answer = texts[question.document][question.start : question.end]
            assert len(answer) > 20
            assert answer.strip()


def test_a_reader_reads_so_many_tokens_and_no_more(program: ModuleType) -> None:
    question = program.Question("q", "d", 100, 200)

    def found(document: str, start: int, end: int, tokens: int) -> Found:
        return Found(document, Chunk(0, "", start, end, tokens), 1.0)

    assert program.share_read(question, [found("d", 0, 150, 100)]) == 0.5
    assert program.share_read(question, [found("e", 0, 300, 1000), found("d", 0, 300, 100)]) == 0.0
    assert program.share_read(question, [found("e", 0, 300, 500), found("d", 100, 200, 1000)]) == 0.5
    assert program.share_read(question, [found("d", 90, 160, 10), found("d", 140, 300, 10)]) == 1.0


def test_the_comparison_prints_a_table(tmp_path: Path) -> None:
    few = ["--documents", "2", "--questions", "5", "--ways", "256$"]

    done = subprocess.run(
        [sys.executable, FOLDER / "chunking.py", "--model", "hash", "--data", tmp_path, "--only", "code", *few],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "2 documents" in done.stdout
    assert done.stdout.count("\n| ") == 4
