"""What is written is run: every command of the README, of the API's, of the NPU's and of the models' page, in order,
against a real server; and every card that a page shows is read.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from pydantic import BaseModel

from appliance.embedding.spec import (
    HubSource,
    OnnxRerankerSpec,
    OnnxSpec,
    RemoteSpec,
    RkllmSpec,
    WheelSource,
    read_card,
)

ROOT = Path(__file__).parent.parent
HERE = "http://127.0.0.1:8080"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(page: Path) -> list[str]:
    return [block for block in fenced(page, "sh") if "curl " in block]


def fenced(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def cards(page: Path) -> list[str]:
    """The cards that a page shows."""
    found = fenced(page, "toml")
    return [block for block in found if all(re.search(rf"^{key} =", block, re.MULTILINE) for key in ("name", "engine"))]


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
    archive, texts, job, listed, retried, documents = answers[5:11]
    assert (archive["job"], texts["job"], job["counts"]["ready"], retried["retried"]) == (1, 2, 2, 0)
    assert [each["id"] for each in listed["jobs"]] == [2, 1]
    assert len(documents["documents"]) == 2
    batch, jina = (each for each in answers if isinstance(each, dict) and "results" in each)
    (prompt,) = (each for each in answers if isinstance(each, dict) and "citations" in each)
    (worded,) = (each for each in answers if isinstance(each, dict) and each.get("mode") == "keyword")
    (similar,) = (each for each in answers if isinstance(each, dict) and each.get("document") == "otters")
    tei, embedded, sparse, cosines = (each for each in answers if isinstance(each, list))
    matrix, near, clusters, alike = (each for each in answers if isinstance(each, dict) and "metric" in each)
    (generated,) = (each for each in answers if isinstance(each, dict) and "requested_model" in each)
    (info,) = (each for each in answers if isinstance(each, dict) and "model_id" in each)
    (health,) = (each for each in answers if isinstance(each, dict) and "models" in each)
    (found,) = (each for each in answers if isinstance(each, dict) and each.get("reranker"))
    assert [[match["document"] for match in each["matches"]] for each in batch["results"]] == [["otters"], ["whales"]]
    assert prompt["context"].startswith("[1] On otters (otters)\n")
    assert {match["document"] for match in worded["matches"]} == {"otters", "whales"}
    assert similar["matches"][0]["document"] == "whales"
    assert [each["index"] for each in jina["results"]] == [1, 0]
    assert [each["index"] for each in tei] == [1, 0]
    assert found["matches"][0]["document"] == "otters"
    assert [len(vector) for vector in embedded] == [256, 256]
    assert {"index", "value"} == set(sparse[0][0])
    assert cosines[0] > cosines[1]
    assert matrix["scores"] == [[2.0], [1.0]]
    assert [each["index"] for each in near["matches"][0]] == [1, 0]
    assert sorted(each["members"] for each in clusters["clusters"]) == [[0, 1], [2, 3]]
    assert alike["duplicates"] == [[0, 2]]
    assert generated["fallback"] is False
    assert info["auto_truncate"] is True
    assert health["models"][generated["model"]]["status"] == "ok"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to build the simulated NPU with")
def test_the_npu_pages_commands_work_on_a_simulated_one(start: Callable[..., Any], tmp_path: Path) -> None:
    server = start(simulate_npu=True, model="simulated-npu")

    answers = [answer for block in blocks(ROOT / "docs" / "npu.md") for answer in run(block, server.url, tmp_path)]

    embedded, loaded = answers
    assert len(embedded["data"][0]["embedding"]) == 1024
    assert [each["engine"] for each in loaded["models"]] == ["rkllm-simulated"]


def test_the_images_pages_commands_work_with_a_tiny_model(
    start: Callable[..., Any], bring_clip: Callable[[Path], None], tmp_path: Path
) -> None:
    bring_clip(tmp_path / "data")
    server = start(data=tmp_path / "data")
    for colour in ("red", "blue"):
        PIL.Image.new("RGB", (40, 40), colour).save(tmp_path / f"{colour}.png")
    commands = [block.replace("clip-vit-b-32", "tiny-clip") for block in blocks(ROOT / "docs" / "images.md")]

    embedded, _, put, by_text, by_image = [answer for block in commands for answer in run(block, server.url, tmp_path)]

    vectors = [each["embedding"] for each in embedded["data"]]
    assert len(vectors) == 4
    assert vectors[1] == pytest.approx(vectors[3], abs=1e-5)
    assert [each["state"] for each in put["documents"]] == ["ready", "ready"]
    assert len(by_text["matches"]) == 2
    assert by_image["matches"][0]["title"] == "blue.png"


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(card, id=f"{page.name}-{number}")
        for page in sorted((ROOT / "docs").glob("*.md"))
        for number, card in enumerate(cards(page))
    ],
)
def test_a_card_that_a_page_shows_is_one(card: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(card, encoding="utf-8")

    assert read_card(path).name


def test_the_models_pages_commands_work_on_a_hub_that_has_such_models(
    hub: Any, hub_module: Any, tmp_path: Path
) -> None:
    tiny = hub_module.sentence_transformer()
    for name, license_name in (
        ("intfloat/multilingual-e5-base", "mit"),
        ("BAAI/bge-large-en-v1.5", "mit"),
        ("my-company/private-model", "other"),
    ):
        hub.put(name, tiny, cardData={"license": license_name})
    hub.repositories["my-company/private-model"].gate = "hf_secret"
    script = "".join(fenced(ROOT / "docs" / "models.md", "sh")).replace("hf_…", "hf_secret")
    assert script.count("appliance pull ") == 3

    done = subprocess.run(
        ["bash", "-e", "-c", f'appliance() {{ "{sys.executable}" -m appliance "$@"; }}\n{script}'],
        env=os.environ | {"HF_ENDPOINT": hub.url, "APPLIANCE_DATA": str(tmp_path / "data")},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name} is installed" for name in ("multilingual-e5-base", "bge-large", "private-model")
    ]


def test_the_models_page_tells_every_key_of_a_card_for_the_cpu() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    told = {name for row in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}

    assert set(OnnxSpec.model_fields) | set(OnnxRerankerSpec.model_fields) <= told
    assert all(f"`{key}`" in page for key in (*HubSource.model_fields, *WheelSource.model_fields) if key != "kind")


@pytest.mark.parametrize(("page", "spec"), [("npu.md", RkllmSpec), ("providers.md", RemoteSpec)])
def test_a_page_of_an_engine_tells_every_key_of_a_card(page: str, spec: type[BaseModel]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    told = {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}

    elsewhere = {"files", "sources", "task", "pinned", "accept_license", "fallback", "centered"}  # docs/models.md
    assert set(spec.model_fields) - elsewhere <= told


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
