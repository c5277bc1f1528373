import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from appliance.cli.client import Server
from appliance.cli.files import BATCH_FILES, LARGEST, Found, Skipped, find
from appliance.cli.server import GRACE

PROGRAM = (sys.executable, "-m", "appliance")


class Live(Protocol):
    url: str


def run(
    *arguments: object, data: Path | None = None, given: str | bytes = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
    extra = ["--data", str(data)] if data else []
    command = [*PROGRAM, *map(str, arguments), *extra]
    done = subprocess.run(
        command,
        env=clean | {"COLUMNS": "200"} | environment,
        input=given.encode() if isinstance(given, str) else given,
        check=False,
        capture_output=True,
        timeout=60,
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    (root / "2024").mkdir(parents=True)
    (root / "2024" / "plan.md").write_text("# The plan\n\nWe grow tomatoes on the balcony.\n")
    (root / "stars.txt").write_text("Galaxies are made of stars, gas and dust.\n")
    return root


def ids(folder: Path) -> list[str]:
    return [each.id for each in find([folder]) if isinstance(each, Found)]


def reasons(folder: Path) -> dict[str, str]:
    return {each.id: each.reason for each in find([folder]) if isinstance(each, Skipped)}


class TestFiles:
    def test_an_id_is_the_path_from_the_folders_parent(self, folder: Path) -> None:
        assert ids(folder) == ["notes/stars.txt", "notes/2024/plan.md"]

    def test_an_id_does_not_depend_on_where_one_stands(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder / "2024")

        assert ids(Path()) == ["2024/plan.md"]
        assert ids(Path("..")) == ids(folder)
        assert ids(Path("plan.md")) == ["plan.md"]

    def test_hidden_files_are_left_out_unless_named_themselves(self, folder: Path) -> None:
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("x")
        (folder / ".env").write_text("SECRET=1")

        assert reasons(folder) == {"notes/.git/": "hidden", "notes/.env": "hidden"}
        assert ids(folder / ".env") == [".env"]

    def test_links_out_of_the_folder_and_to_folders_are_left_out(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.txt").write_text("secret")
        (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
        (folder / "loop").symlink_to(folder)
        (folder / "gone.txt").symlink_to(folder / "nothing")
        (folder / "in.txt").symlink_to(folder / "stars.txt")

        found = reasons(folder)

        assert found["notes/out.txt"] == "a link that leads out of the folder"
        assert found["notes/loop/"] == "a link to a folder"
        assert found["notes/gone.txt"] == "no such file or directory"
        assert "notes/in.txt" in ids(folder)

    def test_what_is_no_text_or_empty_or_huge_is_left_out_with_its_reason(self, folder: Path) -> None:
        (folder / "drawing.SVG").write_text("<svg/>")
        (folder / "old.doc").write_bytes(b"\xd0\xcf")
        (folder / "data.tar.gz").write_bytes(b"\x1f\x8b")
        (folder / "empty.txt").touch()
        with (folder / "huge.txt").open("wb") as huge:
            huge.truncate(LARGEST + 1)
        os.mkfifo(folder / "pipe.txt")

        assert reasons(folder) == {
            "notes/drawing.SVG": "image, not text",
            "notes/old.doc": "an Office format of before 2007",
            "notes/data.tar.gz": "not text",
            "notes/empty.txt": "empty",
            "notes/huge.txt": "larger than 64 MiB",
            "notes/pipe.txt": "no regular file",
        }

    @pytest.mark.parametrize(
        "name",
        [
            "a.pdf",
            "a.DOCX",
            "a.pptx",
            "a.xlsx",
            "a.odt",
            "a.epub",
            "a.rtf",
            "a.csv",
            "a.jsonl",
            "a.eml",
            "a.mbox",
            "a.ts",
            "a.png",
            "a.JPG",
        ],
    )
    def test_what_the_server_may_read_is_sent(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / name).write_bytes(b"x")

        assert ids(tmp_path / "in") == [f"in/{name}"]

    def test_a_name_that_is_not_utf_8_is_left_out(self, folder: Path) -> None:
        (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))).write_text("x")

        assert reasons(folder) == {"notes/caf?.txt": "its name is not UTF-8"}

    def test_of_two_files_with_one_id_the_first_counts(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "elsewhere" / "notes"
        shutil.copytree(folder, other)

        found = list(find([folder, other]))

        assert [each.path.parent.parent for each in found if isinstance(each, Found)] == [tmp_path, folder]
        assert {each.reason for each in found if isinstance(each, Skipped)} == {"another file has the same id"}


class TestIngest:
    def test_a_folder_is_put_in_and_found(self, live: Live, folder: Path) -> None:
        (folder / "song.mp3").write_bytes(b"ID3")

        answer = run("ingest", folder, "--url", live.url, "-c", "cli-found")
        search = run("search", "tomatoes on a balcony", "--url", live.url, "-c", "cli-found", "--json")

        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith("2 added, 0 updated, 0 unchanged, 1 skipped, 0 failed; 2 chunks")
        assert "skipped: audio, not text: notes/song.mp3" in answer.stdout
        assert json.loads(search.stdout)["matches"][0]["document"] == "notes/2024/plan.md"

    def test_a_second_run_changes_only_what_changed(self, live: Live, folder: Path) -> None:
        run("ingest", folder, "--url", live.url, "-c", "cli-again")
        (folder / "stars.txt").write_text("Planets move around stars.")

        answer = run("ingest", folder, "--url", live.url, "-c", "cli-again", "--json")

        summary = json.loads(answer.stdout)
        assert (summary["added"], summary["updated"], summary["unchanged"]) == (0, 1, 1)

    def test_a_file_the_server_cannot_read_is_told_and_its_neighbours_go_in(self, live: Live, folder: Path) -> None:
        (folder / "broken.txt").write_bytes(b"\x00\x01\x02\x00" * 100)
        (folder / "paper.pdf").write_bytes(b"%PDF-1.7\n\xc7\xec\x8f\xa2")

        answer = run("ingest", folder, "--url", live.url, "-c", "cli-broken", "--json")

        summary = json.loads(answer.stdout)
        assert summary["added"] == 2
        left = {each["id"]: each["reason"] for each in summary["skipped"] + summary["failed"]}
        assert set(left) == {"notes/broken.txt", "notes/paper.pdf"}
        assert all(left.values())

    def test_what_the_server_refuses_is_skipped_with_the_servers_own_reason(self, live: Live, folder: Path) -> None:
        broken = b"\x00\x01\x02\x00" * 100
        (folder / "broken.txt").write_bytes(broken)
        alone = httpx.post(f"{live.url}/documents", files={"file": ("broken.txt", broken)}, timeout=20)

        answers = [
            run("ingest", path, "--url", live.url, "-c", "cli-reason", "--json")
            for path in (folder, folder / "broken.txt")
        ]

        for answer, added in zip(answers, (2, 0), strict=True):
            summary = json.loads(answer.stdout)
            assert (answer.returncode, summary["added"], summary["failed"]) == (0, added, [])
            assert [each["reason"] for each in summary["skipped"]] == [alone.json()["documents"][0]["error"]]

    def test_a_file_over_the_servers_limit_goes_alone_and_the_rest_goes_in(
        self, start: Callable[..., Live], folder: Path
    ) -> None:
        server = start(max_body=4096)
        (folder / "long.txt").write_text("word " * 2000)

        with Server(server.url) as client:
            client.ensure("default")
            summary = client.send([each for each in find([folder]) if isinstance(each, Found)], collection="default")

        assert summary.added == 2
        assert [each.id for each in summary.skipped] == ["notes/long.txt"]

    def test_many_files_go_in_batches_and_each_is_counted_once(self, live: Live, tmp_path: Path) -> None:
        many = tmp_path / "many"
        many.mkdir()
        count = BATCH_FILES * 5 + 1
        for number in range(count):
            (many / f"{number}.txt").write_text(f"note number {number}")
        advanced: list[int] = []

        with Server(live.url) as client:
            client.ensure("cli-many")
            files = [each for each in find([many]) if isinstance(each, Found)]
            summary = client.send(files, collection="cli-many", advance=advanced.append)

        assert (summary.added, summary.chunks, sum(advanced)) == (count, count, count)

    def test_a_file_that_goes_away_meanwhile_is_skipped(self, live: Live, folder: Path) -> None:
        files = [each for each in find([folder]) if isinstance(each, Found)]
        (folder / "stars.txt").unlink()

        with Server(live.url) as client:
            client.ensure("cli-gone")
            summary = client.send(files, collection="cli-gone")

        assert summary.added == 1
        assert summary.skipped == [Skipped("notes/stars.txt", "no such file or directory")]

    def test_without_a_server_one_line_says_what_to_do(self, folder: Path) -> None:
        answer = run("ingest", folder, "--url", f"http://127.0.0.1:{free_port()}")

        assert answer.returncode == 1
        assert answer.stderr.count("\n") == 1
        assert "appliance serve" in answer.stderr

    def test_a_moved_file_is_not_embedded_again_and_a_removed_one_goes_where_that_is_asked_for(
        self, live: Live, folder: Path
    ) -> None:
        run("ingest", folder, "--url", live.url, "-c", "cli-moved")
        (folder / "2024" / "plan.md").rename(folder / "plan.md")
        (folder / "stars.txt").unlink()

        moved = json.loads(run("ingest", folder, "--url", live.url, "-c", "cli-moved", "--json").stdout)
        pruned = run("ingest", folder, "--url", live.url, "-c", "cli-moved", "--prune")

        assert (moved["added"], moved["moved"], moved["removed"]) == (0, 1, 0)
        assert pruned.stdout.startswith("0 added, 0 updated, 1 unchanged, 1 removed, 0 skipped, 0 failed")
        left = httpx.get(f"{live.url}/documents", params={"collection": "cli-moved"}).json()["documents"]
        assert [each["id"] for each in left] == ["notes/plan.md"]

    def test_many_files_are_a_job_and_a_second_run_is_one_that_does_nothing(self, live: Live, tmp_path: Path) -> None:
        many = tmp_path / "bulk"
        many.mkdir()
        for number in range(BATCH_FILES * 3):
            (many / f"{number}.txt").write_text(f"note number {number}")

        runs = [run("ingest", many, "--url", live.url, "-c", "cli-job") for _ in range(2)]

        assert [each.returncode for each in runs] == [0, 0]
        jobs = httpx.get(f"{live.url}/jobs", params={"collection": "cli-job"}).json()["jobs"]
        assert [each["state"] for each in jobs] == ["done", "done"]
        assert [(each["counts"]["ready"], each["counts"]["unchanged"]) for each in jobs] == [(0, 96), (96, 0)]

    def test_a_collection_is_embedded_anew_and_followed_to_its_end(self, live: Live, folder: Path) -> None:
        run("ingest", folder, "--url", live.url, "-c", "cli-reindex")

        done = run("reindex", "cli-reindex", "--dimensions", "256", "--strategy", "sentences", "--url", live.url)
        told = json.loads(run("reindex", "cli-reindex", "--model", "hash", "--url", live.url, "--json").stdout)
        wrong = [
            run("reindex", "cli-reindex", *given, "--url", live.url)
            for given in (["--tokens", "99"], ["--finish", "--model", "hash"], ["--finish"], ["--model", "ghost"])
        ]

        assert (done.returncode, done.stdout.splitlines()[0][:36]) == (0, "cli-reindex: 2 embedded anew by hash")
        assert (told["state"], told["counts"]["ready"]) == ("done", 2)
        now = httpx.get(f"{live.url}/collections/cli-reindex").json()
        assert (now["dimensions"], now["chunking"]["strategy"]) == (256, "sentences")
        assert [each.returncode for each in wrong] == [2, 2, 1, 1]
        assert "--strategy" in wrong[0].stderr
        assert "not being reindexed" in wrong[2].stderr

    def test_a_folder_is_followed_until_ctrl_c(self, live: Live, folder: Path) -> None:
        command = [*PROGRAM, "ingest", str(folder), "--watch", "--json", "--url", live.url, "-c", "cli-watch"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            first = json.loads(program.stdout.readline())
            (folder / "stars.txt").rename(folder / "2024" / "stars.txt")
            moved = json.loads(program.stdout.readline())
            (folder / "2024" / "plan.md").unlink()
            removed = json.loads(program.stdout.readline())
            program.send_signal(signal.SIGINT)
            try:
                _, told = program.communicate(timeout=20)
            finally:
                program.kill()

        assert (first["added"], moved["moved"], moved["removed"], removed["removed"]) == (2, 1, 0, 1)
        assert (program.returncode, told.splitlines()[-1]) == (0, "ended")

    def test_watching_a_file_or_two_folders_of_one_name_is_wrong_usage(
        self, live: Live, folder: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "elsewhere" / "notes"
        shutil.copytree(folder, other)

        answers = [
            run("ingest", *paths, "--watch", "--url", live.url) for paths in ([folder / "stars.txt"], [folder, other])
        ]

        assert [each.returncode for each in answers] == [2, 2]


class TestSearch:
    def test_a_match_is_printed_with_the_place_to_cite(self, live: Live, folder: Path) -> None:
        run("ingest", folder, "--url", live.url, "-c", "cli-search")

        answer = run("search", "galaxies", "--url", live.url, "-c", "cli-search", "-k", "1", "--mode", "keyword")

        assert "notes/stars.txt, characters 0 to 41" in answer.stdout
        assert "Galaxies are made of stars" in answer.stdout

    def test_page_section_and_source_are_printed_where_there_are(self, live: Live) -> None:
        metadata = {"page": 12, "page_end": 13, "section": "Guide > Install", "source": "https://example.org/guide"}
        document = {"id": "guide", "title": "Guide", "text": "Zebras are striped.", "metadata": metadata}
        with httpx.Client(base_url=live.url) as client:
            client.post("/collections", json={"name": "cli-places"})
            client.post("/documents", json={"collection": "cli-places", "documents": [document]}).raise_for_status()

        answer = run("search", "zebras", "--url", live.url, "-c", "cli-places", "--mode", "keyword")

        lines = " ".join(answer.stdout.split())  # it may run over two lines
        assert "guide, https://example.org/guide, pages 12 to 13, Guide > Install, characters 0 to 19" in lines

    def test_filters_documents_and_contexts_can_be_asked_for(self, live: Live) -> None:
        with httpx.Client(base_url=live.url) as client:
            client.post("/collections", json={"name": "cli-more"})
            texts = {"a": ("Stars shine. " * 30, 1), "b": ("Stars and seas.", 2)}
            documents = [{"id": name, "text": text, "metadata": {"n": n}} for name, (text, n) in texts.items()]
            client.post("/documents", json={"collection": "cli-more", "documents": documents}).raise_for_status()
        asked = ("search", "stars", "--url", live.url, "-c", "cli-more")

        filtered = json.loads(run(*asked, "--filter", "n = 2", "--json").stdout)
        varied = json.loads(run(*asked, "--by-document", "--diversity", "0.5", "--json").stdout)
        context = run(*asked, "--context", "100", "--filter", "n = 2").stdout
        wrong = run(*asked, "--filter", "n =")

        assert [each["document"] for each in filtered["matches"]] == ["b"]
        assert {each["document"] for each in varied["matches"]} == {"a", "b"}
        assert context == "[1] (b)\nStars and seas.\n"
        assert (wrong.returncode, wrong.stderr) == (2, "error: the filter needs a value at character 4: it ends\n")
        assert "…" in run(*asked).stdout

    def test_the_servers_reranker_can_be_asked_for(self, live: Live, live_reranking: Live, folder: Path) -> None:
        for server in (live, live_reranking):
            run("ingest", folder, "--url", server.url, "-c", "cli-rerank")

        asked = ("search", "sea of stars", "-c", "cli-rerank", "--rerank", "--json")
        answer = json.loads(run(*asked, "--url", live_reranking.url).stdout)
        without = run(*asked, "--url", live.url)

        assert answer["reranker"] == "shared-words"
        assert answer["matches"][0]["rerank_score"] == answer["matches"][0]["score"]
        assert without.returncode == 1
        assert "no reranker is installed" in without.stderr

    def test_an_unknown_collection_is_one_clear_line(self, live: Live) -> None:
        answer = run("search", "x", "--url", live.url, "-c", "nowhere")

        assert answer.returncode == 1
        assert answer.stderr.startswith("error: ")
        assert answer.stderr.count("\n") == 1

    def test_an_address_needs_no_scheme(self, live: Live, folder: Path) -> None:
        answer = run("ingest", folder, "--url", live.url.removeprefix("http://"), "-c", "cli-address")

        assert answer.returncode == 0, answer.stderr


class TestModels:
    def test_the_list_names_every_card(self, tmp_path: Path) -> None:
        table = run("list", data=tmp_path)
        rows = json.loads(run("list", "--json", data=tmp_path).stdout)

        assert table.returncode == 0
        assert {"hash", "all-minilm-l6-v2", "all-minilm-l6-v2-int8"} <= {row["name"] for row in rows}
        assert all(row["name"] in table.stdout for row in rows)
        assert {row["name"]: row["installed"] for row in rows}["hash"]
        found = {row["name"]: row for row in rows}
        assert (found["hash"]["dimensions"], found["ms-marco-minilm-l6-v2"]["dimensions"]) == (1024, None)
        assert (found["openai-3-small"]["engine"], found["openai-3-small"]["installed"]) == ("remote openai", False)

    def test_texts_are_embedded_without_a_server(self, tmp_path: Path) -> None:
        answer = run("embed", "one", "two", "--model", "hash", "--json", data=tmp_path)
        lines = run("embed", "--model", "hash", "--dimensions", "64", data=tmp_path, given="one\ntwo\nthree\n")

        vectors = json.loads(answer.stdout)["embeddings"]
        assert len(vectors) == 2
        assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-5)
        assert [len(line.split()) for line in lines.stdout.splitlines()] == [64, 64, 64]

    def test_a_model_for_other_work_is_one_clear_line(self, tmp_path: Path) -> None:
        reranker = run("embed", "one", "--model", "ms-marco-minilm-l6-v2", data=tmp_path)
        embedder = run("embed", "one", "--model", "hash", data=tmp_path, APPLIANCE_RERANKER="hash")

        assert (reranker.returncode, embedder.returncode) == (2, 2)
        assert "ms-marco-minilm-l6-v2 does not embed" in reranker.stderr
        assert "hash does not rerank" in embedder.stderr

    def test_a_simulated_npu_embeds_and_standard_output_holds_nothing_else(self, tmp_path: Path) -> None:
        answer = run("embed", "--json", "hi", data=tmp_path, APPLIANCE_SIMULATE_NPU="1")

        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["model"] == "simulated-npu"
        assert "the NPU is simulated" in answer.stderr

    def test_what_cannot_be_made_for_it_is_one_clear_line(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("in the way")

        answer = run("embed", "hi", data=tmp_path, APPLIANCE_SIMULATE_NPU="1")

        assert answer.returncode == 1
        assert re.fullmatch(r"error: the simulated NPU cannot be made: .*\n", answer.stderr)

    def test_a_default_that_cannot_be_on_the_npu_is_refused_before_it_is_fetched(self, tmp_path: Path) -> None:
        answer = run("serve", "--engine", "npu", data=tmp_path)

        assert answer.returncode == 2
        assert answer.stderr.startswith("error: the setting engine is npu, and all-minilm-l6-v2 runs on the CPU")

    def test_a_reranker_whose_files_are_the_owners_to_bring_is_told_where(self, tmp_path: Path) -> None:
        answer = run("pull", "qwen3-reranker-0.6b-rk3588", data=tmp_path)

        assert answer.returncode == 1
        assert "qwen3-reranker-0.6b-rk3588.rkllm and tokenizer.json" in answer.stderr
        assert str(tmp_path / "models" / "qwen3-reranker-0.6b-rk3588") in answer.stderr.replace("\n", "")

    def test_an_unknown_model_is_one_clear_line(self, tmp_path: Path) -> None:
        for command in (("pull", "nothing"), ("embed", "x", "--model", "nothing"), ("serve", "--model", "nothing")):
            answer = run(*command, data=tmp_path)

            assert answer.returncode == 2
            assert re.fullmatch(r"error: no model is named 'nothing'; there are .*\n", answer.stderr)

    def test_a_model_that_cannot_be_had_offline_is_one_clear_line(self, tmp_path: Path) -> None:
        answer = run("pull", "all-minilm-l6-v2", data=tmp_path, APPLIANCE_OFFLINE="1")

        assert answer.returncode == 1
        assert "error: the files of all-minilm-l6-v2 could not be fetched" in answer.stderr
        assert "Traceback" not in answer.stderr


class TestUsage:
    def test_wrong_usage_ends_with_2(self, tmp_path: Path) -> None:
        for arguments in (
            ("serve", "--port", "no"),
            ("nothing",),
            ("ingest", tmp_path / "missing"),
            ("search",),
            ("search", "x", "--mode", "psychic"),
        ):
            assert run(*arguments).returncode == 2

    @pytest.mark.parametrize(
        "arguments",
        [
            ("serve", "--port", "65536"),
            ("serve", "--host", "::"),
            ("embed", "x", "--model", "hash", "--dimensions", "3"),
            ("search", " "),
            ("search", "x", "--url", "foo bar"),
            ("search", "x", "--url", "ftp://localhost"),
            ("search", "x", "--url", "http://localhost:99999"),
            ("search", "x", "--url", "http://"),
            ("search", "x", "--key", "two words"),
        ],
    )
    def test_a_value_that_cannot_be_used_is_one_clear_line_and_2(
        self, arguments: tuple[str, ...], tmp_path: Path
    ) -> None:
        answer = run(*arguments, data=tmp_path)

        assert answer.returncode == 2
        assert re.fullmatch(r"error: .+\n", answer.stderr)

    def test_what_the_server_finds_wrong_with_the_command_is_wrong_usage(self, live: Live, folder: Path) -> None:
        answer = run("ingest", folder, "--url", live.url, "-c", "no name!")

        assert answer.returncode == 2
        assert re.fullmatch(r"error: .+\n", answer.stderr)

    def test_a_setting_that_nobody_knows_ends_with_2_wherever_it_is(self, tmp_path: Path) -> None:
        variable = run("list", data=tmp_path, APPLIANCE_COLOUR="red")
        (tmp_path / "appliance.toml").write_text("prot = 80\n")
        key = run("list", data=tmp_path)

        for answer, name in ((variable, "APPLIANCE_COLOUR"), (key, "port")):
            assert answer.returncode == 2
            assert re.fullmatch(rf"error: .*{name}.*\n", answer.stderr)

    def test_words_that_are_not_utf_8_are_one_clear_line_and_2(self, tmp_path: Path) -> None:
        odd = os.fsdecode(b"a\xff")
        for arguments, given in (
            (("embed", "fine", odd, "--model", "hash"), b""),
            (("embed", "--model", "hash"), b"fine\na\xff\n"),
            (("embed", "x", "--model", odd), b""),
            (("pull", odd), b""),
            (("search", odd), b""),
            (("search", "x", "-c", odd), b""),
            (("search", "x", "--url", odd), b""),
            (("search", "x", "--key", odd), b""),
        ):
            answer = run(*arguments, data=tmp_path, given=given)

            assert answer.returncode == 2, arguments
            assert re.fullmatch(r"error: .+\n", answer.stderr)

    def test_a_wrong_setting_ends_with_2_and_says_where_it_was_written(self, tmp_path: Path) -> None:
        answer = run("serve", "--log-format", "xml", data=tmp_path)

        assert answer.returncode == 2
        assert "--log-format" in answer.stderr
        assert "Traceback" not in answer.stderr

    def test_the_version_is_printed(self) -> None:
        from appliance import __version__

        assert run("--version").stdout == f"appliance {__version__}\n"

    def test_help_imports_nothing_heavy(self) -> None:
        ask = (
            "import sys, appliance.cli as c\n"
            "try: c.app(['--help'], prog_name='appliance')\n"
            "except SystemExit: pass\n"
            "print(*sorted(m for m in ('numpy', 'fastapi', 'onnxruntime', 'pydantic', 'httpx') if m in sys.modules))"
        )

        answer = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)

        assert "ingest" in answer.stdout
        assert answer.stdout.splitlines()[-1] == ""


class Served:
    """`appliance serve` as a process; the address comes from what it logs."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("APPLIANCE_")}
        self.process = subprocess.Popen(
            [*PROGRAM, "serve", "--model", "hash", "--port", "0", "--log-format", "json", *arguments],
            env=clean | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"serving"' in line:
                self.url: str = json.loads(line)["address"]
                return
        raise AssertionError("".join(self.lines))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=20)
        self.lines += rest.splitlines()
        return self.process.returncode


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers on one data directory; what still runs is killed with the test."""
    servers: list[Served] = []

    def start(**environment: str) -> Served:
        servers.append(Served("--data", str(tmp_path / "data"), **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


class TestServe:
    def test_it_answers_and_ends_with_0_when_asked_to(self, served: Served, tmp_path: Path) -> None:
        health = httpx.get(f"{served.url}/health", timeout=20)

        code = served.end()

        assert health.json()["status"] == "ok"
        assert "server" not in health.headers
        assert code == 0
        assert {path.name for path in tmp_path.iterdir()} == {"data"}
        assert "Traceback" not in "".join(served.lines)

    def test_it_leaves_nothing_outside_its_data_directory(self, serve: Callable[..., Served], tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        server = serve(HOME=str(home), XDG_CACHE_HOME="", XDG_DATA_HOME="")
        httpx.get(f"{server.url}/health", timeout=20)

        server.end()

        assert list(home.iterdir()) == []

    def test_ctrl_c_ends_it_as_well(self, served: Served) -> None:
        httpx.get(f"{served.url}/health", timeout=20)

        assert served.end(signal.SIGINT) == 0

    def test_a_request_that_runs_is_answered_before_the_end(self, served: Served) -> None:
        body = {"documents": [{"id": str(n), "text": f"word{n} " * 400} for n in range(50)], "wait": 20}
        with httpx.Client(base_url=served.url, timeout=30) as client:
            client.get("/health")
            request = client.build_request("POST", "/documents", json=body)
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor() as pool:
                answer = pool.submit(client.send, request)
                time.sleep(0.15)
                code = served.end()

                assert answer.result().status_code in {201, 202}
        assert code == 0

    def test_a_port_in_use_is_one_clear_line(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            answer = run("serve", "--model", "hash", "--port", port, data=tmp_path)

        assert answer.returncode == 1
        assert answer.stderr == (
            f"error: port {port} is in use on 127.0.0.1: another server runs there, or choose one with --port\n"
        )

    def test_a_port_in_use_is_noticed_before_a_model_is_pulled(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            answer = run("serve", "--port", port, data=tmp_path, APPLIANCE_OFFLINE="1")

        assert answer.returncode == 1
        assert answer.stderr.startswith(f"error: port {port} is in use")

    def test_an_address_that_is_not_ours_is_one_clear_line(self, tmp_path: Path) -> None:
        answer = run("serve", "--model", "hash", "--host", "192.0.2.1", "--allow-open", data=tmp_path)

        assert answer.returncode == 2
        assert answer.stderr == "error: --host 192.0.2.1 is no address of this machine\n"

    def test_nobody_is_let_in_from_outside_without_a_key(self, tmp_path: Path) -> None:
        answer = run("serve", "--model", "hash", "--host", "::", data=tmp_path)

        assert answer.returncode == 2
        assert "api_keys" in answer.stderr

    def test_a_data_directory_in_use_is_one_clear_line(self, served: Served, tmp_path: Path) -> None:
        httpx.get(f"{served.url}/health", timeout=20)

        answer = run("serve", "--model", "hash", "--port", "0", data=tmp_path / "data")

        assert answer.returncode == 1
        assert answer.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in answer.stderr
        assert "serving" not in answer.stderr

    def test_it_says_that_it_serves_once_it_does(self, served: Served) -> None:
        assert httpx.get(f"{served.url}/health", timeout=1).status_code == 200

    def test_a_connection_that_says_nothing_does_not_keep_it_from_ending(self, served: Served) -> None:
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.2)
            began = time.monotonic()

            assert served.end() == 0
        assert time.monotonic() - began < GRACE

    def test_docker_would_not_have_to_kill_it(self) -> None:
        assert GRACE + 2 < 10

    def test_there_are_connections_for_each_request_but_not_for_every_file(self) -> None:
        code = (
            "import resource; from appliance.cli.server import connections\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))\n"
            "print(connections(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections(512))"
        )

        answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

        assert answer.stdout.split() == ["400", "656", "744"]

    def test_a_key_comes_from_the_environment(self, serve: Callable[..., Served], folder: Path) -> None:
        server = serve(APPLIANCE_API_KEYS="hunter2")

        refused = run("ingest", folder, "--url", server.url)
        taken = run("ingest", folder, "--url", server.url, APPLIANCE_API_KEYS="hunter2")

        assert refused.returncode == 1
        assert "--key or APPLIANCE_API_KEYS" in refused.stderr
        assert taken.returncode == 0, taken.stderr
