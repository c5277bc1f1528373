"""Models of other servers among those of this machine."""

import asyncio
from pathlib import Path

import pytest

from appliance.app import create_registry
from appliance.errors import Conflict, EngineUnavailable
from appliance.settings import Settings

pytestmark = pytest.mark.anyio

CARD = """
name = "away"
engine = "remote"
provider = "openai"
urls = ["http://127.0.0.1:9/v1"]
model = "m"
key = "AWAY_KEY"
family = "openai"
dimensions = 8
max_tokens = 100
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "away.toml").write_text(CARD)
    (tmp_path / "secrets").write_text("# keys\nOTHER=x\n")
    return Settings(data=tmp_path, model="hash", secrets_file=tmp_path / "secrets")


async def test_a_model_of_another_server_is_here_when_its_key_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = create_registry(settings)
    card = registry.card("away")

    before = card in registry.installed()
    (settings.data / "secrets").write_text("AWAY_KEY=k\n")
    with_file = card in registry.installed()
    (settings.data / "secrets").write_text("not a secret\n")
    damaged = card in registry.installed()
    monkeypatch.setenv("AWAY_KEY", "k")
    with_variable = card in registry.installed()

    assert (before, with_file, damaged, with_variable) == (False, True, False, True)
    await registry.close()


async def test_without_its_key_a_model_says_which_it_needs_and_where(settings: Settings) -> None:
    registry = create_registry(settings)

    with pytest.raises(EngineUnavailable, match="away needs the key AWAY_KEY: set it in the environment or in secrets"):
        await registry.embed("away", ["hello"])
    await registry.close()


async def test_a_model_of_another_server_takes_no_memory_here_and_has_no_files_to_remove(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWAY_KEY", "k")
    registry = create_registry(settings)
    await registry.get("away")

    assert registry.loaded() == []
    assert registry.size(registry.card("away")) == 0
    with pytest.raises(Conflict, match="no files here to remove"):
        await registry.delete("away")
    await registry.close()


async def test_a_server_that_cannot_be_reached_is_fallen_back_from(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWAY_KEY", "k")
    registry = create_registry(settings)

    answer = await asyncio.wait_for(registry.embed("away", ["hello"], use_fallback=["hash"]), 30)

    assert answer.model == "hash"
    await registry.close()
