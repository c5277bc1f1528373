"""`appliance evaluate`, and the program that runs it in a checkout."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import Server
from appliance.cli.evaluation import (
    COMPARED,
    batches,
    collapsed,
    compare,
    evaluate,
    read_corpus,
    read_judgements,
    read_questions,
    table,
)
from appliance.errors import InvalidInput, UpstreamFailed

PROGRAM = Path(__file__).parent.parent / "scripts" / "evaluate"

CORPUS = {
    "d1": ("Boats", "A boat sails on the sea."),
    "d2": ("Trains", "A train runs on rails, and stops at the station."),
    "d3": ("", "Boil the rice, then fry the onions."),
}


@pytest.fixture
def server(live: Any) -> Iterator[Server]:
    with Server(live.url) as opened:
        yield opened


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


def test_judgements_are_read_with_their_gains(folder: Path) -> None:
    assert read_judgements(folder) == {"q1": {"d1": 1}, "q2": {"d3": 2, "d1": 0}}


def test_judgements_lie_where_beir_puts_them_too(folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels" / "test.tsv")

    assert set(read_judgements(folder)) == {"q1", "q2"}


@pytest.mark.parametrize(
    ("qrels", "says"),
    [
        (None, r"neither qrels\.tsv nor"),
        ("", "judges nothing"),
        ("q1\td1\t0\n", "judges nothing"),
        ("q1 d1 1\n", "line 1: not query, document and gain"),
        ("query\tdocument\tgain\nq1\td1\tmuch\n", "line 2: not query"),
        ("q1\td1\t1\n\xff", "not UTF-8"),
    ],
)
def test_judgements_that_are_none_are_refused(tmp_path: Path, qrels: str | None, says: str) -> None:
    if qrels is not None:
        (tmp_path / "qrels.tsv").write_bytes(qrels.encode("latin-1"))

    with pytest.raises(InvalidInput, match=says):
        read_judgements(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"_id": 1, "text": "x"}', '{"_id": "q1"}'])
def test_a_question_that_is_none_is_told_with_its_line(folder: Path, line: str) -> None:
    (folder / "queries.jsonl").write_text(line)

    with pytest.raises(InvalidInput, match=r"queries\.jsonl, line 1: not a JSON object"):
        read_questions(folder, read_judgements(folder))


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "queries.jsonl").unlink()

    with pytest.raises(InvalidInput, match=r"queries\.jsonl: no such file"):
        read_questions(folder, read_judgements(folder))


def test_passages_are_collapsed_to_documents_by_the_best() -> None:
    matches = [{"document": name} for name in ["b", "a", "b", "c", "a"]]

    assert collapsed(matches) == ["b", "a", "c"]


def test_documents_are_sent_in_batches_of_bounded_number_and_size() -> None:
    small = [{"id": str(n), "title": "", "text": "x"} for n in range(300)]
    large = [{"id": str(n), "title": "", "text": "x" * 2**20} for n in range(5)]

    assert [len(batch) for batch in batches(iter(small))] == [128, 128, 44]
    assert [len(batch) for batch in batches(iter(large))] == [2, 2, 1]
    assert list(batches(iter([]))) == []


def test_a_collection_is_indexed_searched_and_measured(folder: Path, server: Server) -> None:
    told: list[str] = []

    result = evaluate(server, folder, collection="judged", model="hash", progress=told.append)

    assert (result["documents"], result["chunks"], result["queries"]) == (3, 3, 2)
    for mode in ("vector", "keyword", "hybrid"):
        assert result["modes"][mode]["nDCG@10"] == 1.0
        assert result["modes"][mode]["recall@100"] == 1.0
    assert "| hybrid | 1.0000 | 1.0000 | 1.0000 |" in table(result)
    assert "hybrid: 2 of 2 queries" in told


@pytest.mark.parametrize("count", [1, 130])
def test_documents_that_the_server_refuses_are_counted_and_the_rest_goes_on(
    folder: Path, server: Server, count: int
) -> None:
    with (folder / "corpus.jsonl").open("a") as corpus:
        for number in range(count):
            corpus.write(json.dumps({"_id": f"x{number}", "title": "", "text": "\0\1\2\0" * 100}) + "\n")

    result = evaluate(server, folder, collection=f"refused-{count}", model="hash")

    assert (result["documents"], result["refused"], result["chunks"]) == (3, count, 3)
    assert result["modes"]["hybrid"]["recall@100"] == 1.0
    assert f"3 documents ({count} more were refused" in table(result)


@pytest.mark.parametrize("count", [1, 5, 130])
def test_ids_that_the_server_refuses_are_told_and_the_rest_goes_on(folder: Path, server: Server, count: int) -> None:
    ids = [f"papers//{number}" for number in range(count)]
    lines = (folder / "corpus.jsonl").read_text().splitlines()
    lines[1:1] = [json.dumps({"_id": name, "title": "", "text": "A boat."}) for name in ids]
    (folder / "corpus.jsonl").write_text("\n".join(lines))

    result = evaluate(server, folder, collection=f"refused-ids-{count}", model="hash")

    assert (result["documents"], result["refused"], result["chunks"]) == (3, count, 3)
    assert [each["id"] for each in result["refusals"]] == ids
    assert result["modes"]["hybrid"]["recall@100"] == 1.0
    told = table(result)
    assert f"3 documents ({count} more were refused" in told
    assert "Refused: papers//0: " in told
    assert "no two in a row" in told
    assert len(told) < 1500


def test_a_corpus_of_which_nothing_is_taken_is_an_error(folder: Path, server: Server) -> None:
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "a//b", "text": "A boat."}))

    with pytest.raises(InvalidInput, match=r"every document was refused, the first: a//b: id: .* no two in a row"):
        evaluate(server, folder, collection="refused-all", model="hash")


def test_lines_end_at_line_feeds_alone(folder: Path, server: Server) -> None:
    odd = "A boat\u2028on the\u0085sea\u2029and\x1con."
    documents = [{"_id": "d1", "title": "Bo\u2028ats", "text": odd}, {"_id": "d\u00853", "text": "Fry the onions."}]
    (folder / "corpus.jsonl").write_text(
        "\r\n".join(json.dumps(each, ensure_ascii=False) for each in documents), encoding="utf-8", newline=""
    )
    (folder / "queries.jsonl").write_text(
        "\n".join(
            json.dumps({"_id": name, "text": text}, ensure_ascii=False)
            for name, text in {"q1": "boat\u2028sea", "q\u00852": "onions"}.items()
        ),
        encoding="utf-8",
    )
    (folder / "qrels.tsv").write_text("q1\td1\t1\r\nq\u00852\td\u00853\t1\r\n", encoding="utf-8", newline="")

    judged = read_judgements(folder)

    assert judged == {"q1": {"d1": 1}, "q\u00852": {"d\u00853": 1}}
    assert read_questions(folder, judged) == {"q1": "boat\u2028sea", "q\u00852": "onions"}
    assert [each["text"] for each in read_corpus(folder)] == [odd, "Fry the onions."]


def test_a_query_that_is_judged_but_not_there_is_an_error(folder: Path, server: Server) -> None:
    (folder / "qrels.tsv").write_text("q1\td1\t1\nq9\td1\t1\n")

    with pytest.raises(InvalidInput, match="lacks 1 judged"):
        evaluate(server, folder, collection="judged", model="hash")


def test_settings_are_compared_on_what_is_there_and_nothing_is_written(folder: Path, server: Server, live: Any) -> None:
    evaluate(server, folder, collection="compared", model="hash")
    (folder / "corpus.jsonl").unlink()
    before = server.collection("compared")

    result = compare(server, folder, collection="compared")

    assert {*result["modes"], *result["left out"]} == set(COMPARED)
    assert list(result["left out"]) == ["hybrid, as set, reranked"]  # this server has no reranker
    assert "2 queries; the best by nDCG@10: vector." in table(result)
    assert "Left out: hybrid, as set, reranked: " in table(result)
    assert server.collection("compared") == before


def test_a_comparison_with_documents_of_elsewhere_is_refused(folder: Path, server: Server) -> None:
    server.ensure("elsewhere", model="hash")

    with pytest.raises(InvalidInput, match="nothing that was judged relevant was found"):
        compare(server, folder, collection="elsewhere")
    with pytest.raises(UpstreamFailed, match="nowhere"):
        compare(server, folder, collection="nowhere")


def run(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=PROGRAM.parent.parent,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )


def test_without_a_url_the_program_runs_a_server_of_its_own(folder: Path, tmp_path: Path) -> None:
    done = run(PROGRAM, folder, "--model", "hash", "--json", home=tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modes"]["keyword"]["recall@10"] == 1.0


def test_the_command_compares_on_a_running_server(folder: Path, server: Server, live: Any, tmp_path: Path) -> None:
    evaluate(server, folder, collection="commanded", model="hash")

    done = run("-m", "appliance", "evaluate", folder, "--compare", "-c", "commanded", "--url", live.url, home=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "| hybrid, dbsf, words 0.5 | 1.0000" in done.stdout


def test_a_server_that_is_not_there_is_told_plainly(folder: Path, tmp_path: Path) -> None:
    done = run(PROGRAM, folder, "--url", "http://127.0.0.1:9", home=tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("error: no server answers")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--alone", "--url", "x"),
        ("--alone", "--compare", "-c", "x"),
        ("--compare",),
        ("--compare", "-c", "x", "--model", "hash"),
    ],
)
def test_options_that_exclude_each_other_are_wrong_usage(
    folder: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = run("-m", "appliance", "evaluate", folder, *options, home=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("error: --")
