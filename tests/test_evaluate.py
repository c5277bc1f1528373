import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import httpx
import pytest

PROGRAM = Path(__file__).parent.parent / "scripts" / "evaluate"

CORPUS = {
    "d1": ("Boats", "A boat sails on the sea."),
    "d2": ("Trains", "A train runs on rails, and stops at the station."),
    "d3": ("", "Boil the rice, then fry the onions."),
}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = SourceFileLoader("evaluate", str(PROGRAM))
    spec = spec_from_loader("evaluate", loader)
    assert spec
    module = module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = writes
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of three documents and three queries, one of which nobody judged."""
    documents = [{"_id": name, "title": title, "text": text} for name, (title, text) in CORPUS.items()]
    queries = {"q1": "boat on the sea", "q2": "fry onions", "q3": "nobody judged this"}
    lines = [{"_id": name, "text": text} for name, text in queries.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n\n")
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td1\t0\nq3\td1\t0\n")
    return tmp_path


def test_judgements_are_read_with_their_gains(program: ModuleType, folder: Path) -> None:
    assert program.read_judgements(folder) == {"q1": {"d1": 1}, "q2": {"d3": 2, "d1": 0}}


def test_judgements_lie_where_beir_puts_them_too(program: ModuleType, folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")

    assert set(program.read_judgements(folder)) == {"q1", "q2"}


def test_a_folder_without_judgements_is_refused(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither qrels\.tsv nor"):
        program.read_judgements(tmp_path)


def test_passages_are_collapsed_to_documents_by_the_best(program: ModuleType) -> None:
    matches = [{"document": name} for name in ["b", "a", "b", "c", "a"]]

    assert program.collapsed(matches) == ["b", "a", "c"]


def test_documents_are_sent_in_batches_of_bounded_number_and_size(program: ModuleType) -> None:
    small = [{"id": str(n), "title": "", "text": "x"} for n in range(300)]
    large = [{"id": str(n), "title": "", "text": "x" * 2**20} for n in range(5)]

    assert [len(batch) for batch in program.batches(iter(small))] == [128, 128, 44]
    assert [len(batch) for batch in program.batches(iter(large))] == [2, 2, 1]
    assert list(program.batches(iter([]))) == []


def test_a_collection_is_indexed_searched_and_measured(program: ModuleType, folder: Path, client: httpx.Client) -> None:
    judged = program.read_judgements(folder)

    result = program.evaluate(client, folder, judged, collection="judged", model="hash")

    assert (result["documents"], result["chunks"], result["queries"]) == (3, 3, 2)
    for mode in ("vector", "keyword", "hybrid"):
        assert result["modes"][mode]["nDCG@10"] == 1.0
        assert result["modes"][mode]["recall@100"] == 1.0
    assert "| hybrid | 1.0000 | 1.0000 | 1.0000 |" in program.table(result)


@pytest.mark.parametrize("count", [1, 130])
def test_documents_that_the_server_refuses_are_counted_and_the_rest_goes_on(
    program: ModuleType, folder: Path, client: httpx.Client, count: int
) -> None:
    with (folder / "corpus.jsonl").open("a") as corpus:
        for number in range(count):
            corpus.write(json.dumps({"_id": f"x{number}", "title": "", "text": "\0\1\2\0" * 100}) + "\n")

    result = program.evaluate(
        client, folder, program.read_judgements(folder), collection=f"refused-{count}", model="hash"
    )

    assert (result["documents"], result["refused"], result["chunks"]) == (3, count, 3)
    assert result["modes"]["hybrid"]["recall@100"] == 1.0
    assert f"3 documents ({count} more were refused" in program.table(result)


def test_a_query_that_is_judged_but_not_there_is_an_error(
    program: ModuleType, folder: Path, client: httpx.Client
) -> None:
    judged = {"q1": {"d1": 1}, "q9": {"d1": 1}}

    with pytest.raises(ValueError, match="lacks 1 judged"):
        program.evaluate(client, folder, judged, collection="judged", model="hash")


def test_without_a_url_the_program_runs_a_server_of_its_own(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, "--model", "hash", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modes"]["keyword"]["recall@10"] == 1.0


def test_a_server_that_is_not_there_is_told_plainly(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, "--url", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("evaluate: ")
    assert "Traceback" not in done.stderr
