"""What is written is run: every command of the README and of the API's page, in order, against a real server."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
HERE = "http://127.0.0.1:8080"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(page: Path) -> list[str]:
    found = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if "curl " in block]


def run(block: str, url: str, folder: Path) -> list[Any]:
    """Run a block; what its commands answered, as JSON."""
    script = block.replace(HERE, url).replace("curl ", "curl -sS --fail-with-body -w '\\n' ")
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.model
def test_the_readmes_commands_work(live_minilm: Any, tmp_path: Path) -> None:
    answers = [answer for block in blocks(ROOT / "README.md") for answer in run(block, live_minilm.url, tmp_path)]

    openai, ollama, put, found = answers
    assert len(openai["data"][0]["embedding"]) == 384
    assert len(ollama["embeddings"][0]) == 384
    assert put["documents"][0]["state"] == "ready"
    assert found["matches"][0]["document"] == put["documents"][0]["id"]


def test_the_api_pages_commands_work(
    start: Callable[..., Any], bring_reranker: Callable[[Path], None], tmp_path: Path
) -> None:
    bring_reranker(tmp_path / "data")
    server = start(data=tmp_path / "data")

    answers = [answer for block in blocks(ROOT / "docs" / "api.md") for answer in run(block, server.url, tmp_path)]

    assert [each["state"] for each in answers[0]["documents"]] == ["ready", "ready"]
    assert answers[1]["documents"][0]["id"] == "notes/badgers.md"
    (jina,) = (each for each in answers if isinstance(each, dict) and "results" in each)
    (tei,) = (each for each in answers if isinstance(each, list))
    (found,) = (each for each in answers if isinstance(each, dict) and each.get("reranker"))
    assert [each["index"] for each in jina["results"]] == [1, 0]
    assert [each["index"] for each in tei] == [1, 0]
    assert found["matches"][0]["document"] == "otters"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
