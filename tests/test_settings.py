"""Settings: where they come from, which wins, what is refused, and that the shipped file tells the truth."""

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from structlog.testing import capture_logs

from appliance.errors import InvalidInput
from appliance.settings import PROFILES, Settings, example, shipped


@pytest.fixture(autouse=True)
def _bare_environment(tmp_path: Path) -> Iterator[None]:
    """No APPLIANCE_*, no HF_HUB_OFFLINE, a home of its own; what a test sets is gone after it."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("APPLIANCE_") or name in {"HF_HUB_OFFLINE", "XDG_DATA_HOME"}:
            del os.environ[name]
    os.environ["HOME"] = str(tmp_path / "home")
    yield
    os.environ.clear()
    os.environ.update(before)


def _written(folder: Path, text: str, *, name: str = "settings.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


# One value per setting that is valid and not the default: as a flag, as a variable, as TOML, and as what comes out.
OTHERS: dict[str, tuple[Any, str, str, Any]] = {
    "host": ("::1", "::1", '"::1"', "::1"),
    "port": (9000, "9000", "9000", 9000),
    "model": ("hash", "hash", '"hash"', "hash"),
    "reranker": ("r", "r", '"r"', "r"),
    "threads": (3, "3", "3", 3),
    "engine": ("npu", "npu", '"npu"', "npu"),
    "npu_library": (
        Path("/opt/librkllmrt.so"),
        "/opt/librkllmrt.so",
        '"/opt/librkllmrt.so"',
        Path("/opt/librkllmrt.so"),
    ),
    "npu_abi": ("C", "C", '"C"', "C"),
    "npu_timeout": (30.0, "30s", '"30s"', 30.0),
    "simulate_npu": (True, "1", "true", True),
    "preload": (["hash"], "hash", '["hash"]', ["hash"]),
    "aliases": ({"a": "b", "c": "d"}, "a=b, c=d", '{ a = "b", c = "d" }', {"a": "b", "c": "d"}),
    "fallback": (["a", "hash"], "a,hash", '["a", "hash"]', ["a", "hash"]),
    "use_fallback": (True, "1", "true", True),
    "memory_budget": (2_000_000, "2MB", '"2MB"', 2_000_000),
    "secrets_file": (Path("/etc/secrets"), "/etc/secrets", '"/etc/secrets"', Path("/etc/secrets")),
    "profile": ("low-memory", "low-memory", '"low-memory"', "low-memory"),
    "batch_tokens": (256, "256", "256", 256),
    "cache_entries": (5, "5", "5", 5),
    "cache_ttl": (60.0, "1m", '"1m"', 60.0),
    "cache_on_disk": (True, "1", "true", True),
    "cache_disk_size": (2_000_000, "2MB", '"2MB"', 2_000_000),
    "redis_url": ("redis://h/1", "redis://h/1", '"redis://h/1"', SecretStr("redis://h/1")),
    "redis_ttl": (60.0, "1m", '"1m"', 60.0),
    "max_pixels": (20_000, "20000", "20000", 20_000),
    "keep_alive": (300.0, "5m", '"5m"', 300.0),
    "offline": (True, "true", "true", True),
    "api_keys": (["a", "b"], "a,b", '["a", "b"]', [SecretStr("a"), SecretStr("b")]),
    "api_keys_file": (Path("/etc/keys"), "/etc/keys", '"/etc/keys"', Path("/etc/keys")),
    "allow_open": (True, "1", "true", True),
    "allowed_hosts": (["x.example"], "x.example", '["x.example"]', ["x.example"]),
    "allowed_origins": (
        ["https://a", "https://b"],
        "https://a, https://b",
        '["https://a", "https://b"]',
        ["https://a", "https://b"],
    ),
    "max_body": (2_000_000, "2MB", '"2MB"', 2_000_000),
    "max_pending": (7, "7", "7", 7),
    "wait": (0.5, "0.5", "0.5", 0.5),
    "ingest_roots": ([Path("/srv/a")], "/srv/a", '["/srv/a"]', [Path("/srv/a")]),
    "watch_folders": ({"/srv/a": "b"}, "/srv/a=b", '{ "/srv/a" = "b" }', {"/srv/a": "b"}),
    "token_ids": ("reject", "reject", '"reject"', "reject"),
    "strict_openai": (True, "yes", "true", True),
    "store": ("postgres", "postgres", '"postgres"', "postgres"),
    "store_url": ("postgresql://h/d", "postgresql://h/d", '"postgresql://h/d"', SecretStr("postgresql://h/d")),
    "catalog_url": ("postgresql://h/c", "postgresql://h/c", '"postgresql://h/c"', SecretStr("postgresql://h/c")),
    "store_index": ("ivfflat", "ivfflat", '"ivfflat"', "ivfflat"),
    "store_distance": ("cosine", "cosine", '"cosine"', "cosine"),
    "store_precision": ("single", "single", '"single"', "single"),
    "chunk_tokens": (128, "128", "128", 128),
    "chunk_overlap": (5, "5", "5", 5),
    "title_weight": (2.0, "2", "2", 2.0),
    "fusion": ("rrf", "rrf", '"rrf"', "rrf"),
    "vector_weight": (0.25, "0.25", "0.25", 0.25),
    "keyword_weight": (2.0, "2", "2", 2.0),
    "literal_boost": (3.0, "3", "3", 3.0),
    "fusion_k": (10, "10", "10", 10),
    "search_depth": (70, "70", "70", 70),
    "search_memory": (2_000_000, "2MB", '"2MB"', 2_000_000),
    "search_candidates": (500, "500", "500", 500),
    "rerank_depth": (20, "20", "20", 20),
    "log_format": ("json", "json", '"json"', "json"),
    "log_level": ("debug", "debug", '"debug"', "debug"),
}


def test_with_a_simulated_npu_its_model_is_the_default_unless_another_is_named() -> None:
    assert Settings(simulate_npu=True).model == "simulated-npu"
    assert Settings(simulate_npu=True, model="hash").model == "hash"
    assert Settings().model == "all-minilm-l6-v2"


@pytest.mark.parametrize("other", [{"engine": "cpu"}, {"npu_library": Path("/usr/lib/librkllmrt.so")}])
def test_a_simulated_npu_and_what_would_not_use_it_exclude_each_other(other: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="exclude each other"):
        Settings(simulate_npu=True, **other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"watch_folders": {"/a/notes": "c", "/b/notes": "c"}}, "one name"),
        ({"watch_folders": {"/": "c"}}, "has a name"),
        ({"watch_folders": {"/a/notes": ""}}, "a collection"),
        ({"ingest_roots": [Path("/")]}, "has a name"),
    ],
)
def test_folders_that_would_get_in_each_others_way_or_have_no_name_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Settings(**settings)
    assert Settings(watch_folders={"/a/notes": "c", "/b/notes": "d", "~/x": "c"}).watched()[Path("/b/notes")] == "d"


def test_the_table_of_this_test_knows_every_setting() -> None:
    assert set(OTHERS) | {"data", "config"} == set(Settings.model_fields)


@pytest.mark.parametrize("name", OTHERS)
def test_a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default(
    name: str, tmp_path: Path
) -> None:
    flag, variable, toml, expected = OTHERS[name]
    default = getattr(Settings(), name)

    file = _written(tmp_path, f"{name} = {toml}\n")
    from_file = Settings(config=file)
    os.environ[f"APPLIANCE_{name.upper()}"] = variable
    from_environment = Settings()
    other_file = _written(tmp_path, f"{name} = {_in_toml(name, default)}\n", name="other.toml")
    over_file = Settings(config=other_file)
    os.environ[f"APPLIANCE_{name.upper()}"] = _in_environment(name, default)
    from_flag = Settings(config=other_file, **{name: flag})

    assert default != expected
    assert getattr(from_file, name) == expected
    assert from_file.origin(name) == str(file)
    assert getattr(from_environment, name) == getattr(over_file, name) == expected
    assert over_file.origin(name) == f"APPLIANCE_{name.upper()}"
    assert getattr(from_flag, name) == expected
    assert from_flag.origin(name) == "--" + name.replace("_", "-")
    assert Settings(config=None).origin("wait") == ("default" if name != "wait" else "APPLIANCE_WAIT")


def _in_toml(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, str):
        return f'"{value or ""}"'
    if isinstance(value, SecretStr):
        return f'"{value.get_secret_value()}"'
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = "{other}"' for key, other in value.items()) + "}"
    return repr(value) if not name.startswith("api_keys") else "[]"


def _in_environment(name: str, value: object) -> str:
    return "" if value is None or value in ([], {}) else str(value)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_supplies_what_nothing_else_says_and_is_told_as_the_origin(profile: str, tmp_path: Path) -> None:
    defaults, settings = Settings(), Settings(profile=profile)

    for name in set(Settings.model_fields) - {"profile"}:
        said = name in PROFILES[profile]
        assert getattr(settings, name) == (PROFILES[profile][name] if said else getattr(defaults, name))
        assert settings.origin(name) == (f"profile {profile}" if said else "default")


def test_a_profile_loses_against_file_environment_and_flag(tmp_path: Path) -> None:
    file = _written(tmp_path, 'profile = "low-memory"\nmax_pending = 65\n')
    os.environ["APPLIANCE_CACHE_ENTRIES"] = "1001"

    settings = Settings(config=file, keep_alive="7m")

    assert (settings.max_pending, settings.cache_entries, settings.keep_alive) == (65, 1001, 420)
    assert settings.batch_tokens == PROFILES["low-memory"]["batch_tokens"]
    assert settings.origin("max_pending") == str(file)
    assert settings.origin("cache_entries") == "APPLIANCE_CACHE_ENTRIES"
    assert settings.origin("keep_alive") == "--keep-alive"
    assert settings.origin("batch_tokens") == "profile low-memory"


def test_the_profile_itself_is_chosen_as_every_setting_is(tmp_path: Path) -> None:
    file = _written(tmp_path, 'profile = "low-memory"\n')
    os.environ["APPLIANCE_PROFILE"] = "throughput"

    over_file, from_flag = Settings(config=file), Settings(config=file, profile="balanced")

    assert over_file.origin("max_pending") == "profile throughput"
    assert from_flag.origin("max_pending") == "default"


def test_a_profile_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^profile \(--profile\): Input should be 'balanced'"):
        Settings(profile="fast")


def test_every_profile_says_only_what_settings_take_and_the_first_is_the_default() -> None:
    field = Settings.model_fields["profile"]

    assert tuple(PROFILES) == field.annotation.__args__  # type: ignore[union-attr]  # a Literal's
    assert field.default == "balanced"
    assert PROFILES["balanced"] == {}


def test_the_shipped_file_names_every_setting_at_its_default() -> None:
    assert (shipped("config") / "appliance.toml").read_text(encoding="utf-8") == example()


def test_the_shipped_file_uncommented_is_the_defaults(tmp_path: Path) -> None:
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", example(), flags=re.MULTILINE)
    file = _written(tmp_path, uncommented)

    read, defaults = Settings(config=file), Settings()

    assert set(tomllib.loads(uncommented)) == set(Settings.model_fields) - {"config"}
    assert read.model_dump(exclude={"config"}) == defaults.model_dump(exclude={"config"})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_file_in_the_data_directory_is_read_when_it_is_there(tmp_path: Path) -> None:
    _written(tmp_path / "kept", "port = 9001\n", name="appliance.toml")
    os.environ["APPLIANCE_DATA"] = str(tmp_path / "kept")

    assert Settings().port == 9001
    assert Settings(data=tmp_path / "elsewhere").port == 8080


def test_the_file_in_the_data_directory_cannot_lead_to_another_one(tmp_path: Path) -> None:
    _written(tmp_path, f'data = "{tmp_path / "other"}"\n', name="appliance.toml")

    with pytest.raises(InvalidInput, match="cannot be set by the file that lies in it"):
        Settings(data=tmp_path)


def test_a_named_file_may_say_where_the_data_is_and_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    file = _written(tmp_path, 'data = "~/kept"\n')

    assert Settings(config=file).data == tmp_path / "home" / "kept"
    with pytest.raises(InvalidInput, match=r"cannot be read: .*missing\.toml"):
        Settings(config=tmp_path / "missing.toml")


def test_data_is_absolute_and_follows_xdg(tmp_path: Path) -> None:
    assert Settings().data == tmp_path / "home/.local/share/appliance"
    assert Settings(data="here").data == Path.cwd() / "here"
    os.environ["XDG_DATA_HOME"] = str(tmp_path / "xdg")
    assert Settings().data == tmp_path / "xdg" / "appliance"


def test_the_places_lie_under_data(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)

    assert settings.database == tmp_path / "appliance.db"
    assert {settings.models, settings.cards, settings.cache} == {
        tmp_path / "models",
        tmp_path / "cards",
        tmp_path / "cache",
    }


def test_an_unknown_key_is_refused_wherever_it_is_written_with_the_nearest_that_is_known(tmp_path: Path) -> None:
    file = _written(tmp_path, "max_bdy = 3\n")

    with pytest.raises(InvalidInput, match=r"no setting max_bdy \(.*settings\.toml\); did you mean max_body\?"):
        Settings(config=file)
    with pytest.raises(InvalidInput, match=r"no setting prot \(--prot\); did you mean port\?"):
        Settings(prot=1)  # type: ignore[call-arg]  # the mistake is what is tested
    os.environ["APPLIANCE_KEEPALIVE"] = "5m"
    with pytest.raises(InvalidInput, match=r"\(APPLIANCE_KEEPALIVE\); did you mean keep_alive\?"):
        Settings()


def test_config_is_no_key_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no setting config"):
        Settings(config=_written(tmp_path, 'config = "x"\n'))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"port": "eighty"}, r"^port \(--port\): Input should be a valid integer"),
        ({"port": 65536}, r"^port \(--port\): Input should be less than or equal to 65535"),
        ({"max_body": "12 parsecs"}, r"^max_body \(--max-body\): "),
        ({"keep_alive": "5 parsecs"}, r"^keep_alive \(--keep-alive\): "),
        ({"keep_alive": float("nan")}, r"^keep_alive \(--keep-alive\): "),
        ({"token_ids": "gpt2"}, r"^token_ids \(--token-ids\): Input should be 'cl100k', 'model' or 'reject'"),
        ({"vector_weight": 0, "keyword_weight": 0}, "cannot both be 0"),
        ({"chunk_tokens": 32, "chunk_overlap": 32}, "chunk_overlap must be less"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_clear_message(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told) as caught:
        Settings(**values)

    assert "\n" not in caught.value.message


def test_a_bad_value_in_the_environment_names_its_variable() -> None:
    os.environ["APPLIANCE_PORT"] = "tcp://10.0.0.1:80"

    with pytest.raises(InvalidInput, match=r"^port \(APPLIANCE_PORT\): "):
        Settings()


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"not TOML: .*settings\.toml"):
        Settings(config=_written(tmp_path, "port = = 3\n"))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5m", 300.0), ("1h30m", 5400.0), ("250ms", 0.25), ("-1", -1.0), ("-1m", -60.0), ("42.5", 42.5), (0, 0.0)],
)
def test_a_duration_is_seconds_or_words(written: object, seconds: float) -> None:
    assert Settings(keep_alive=written).keep_alive == seconds


@given(st.integers(1024, 2**40))
def test_a_size_in_bytes_is_itself(size: int) -> None:
    assert Settings(max_body=size).max_body == Settings(max_body=str(size)).max_body == size


def test_hugging_faces_own_switch_is_honoured_and_ours_wins() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    assert Settings().offline
    assert Settings().origin("offline") == "HF_HUB_OFFLINE"
    os.environ["APPLIANCE_OFFLINE"] = "0"
    assert not Settings().offline


def test_keys_come_from_the_list_and_the_file_each_once(tmp_path: Path) -> None:
    file = _written(tmp_path, "# of the kitchen\nsk-file\n\n  sk-both  \n", name="keys")

    assert Settings(api_keys=["sk-list", "sk-both"], api_keys_file=file).keys() == ("sk-list", "sk-both", "sk-file")
    assert Settings().keys() == ()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "two words\n", "schlüssel\n"])
def test_a_key_file_without_a_usable_key_is_refused_rather_than_open(text: str, tmp_path: Path) -> None:
    settings = Settings(api_keys_file=_written(tmp_path, text, name="keys"))

    with pytest.raises(InvalidInput):
        settings.keys()


def test_a_key_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Settings(api_keys_file=tmp_path / "missing").keys()


def test_no_key_is_ever_printed() -> None:
    settings = Settings(api_keys=["sk-canary"])
    os.environ["APPLIANCE_API_KEYS"] = "sk-canary"
    with pytest.raises(InvalidInput) as caught:
        Settings(api_keys=[object(), "sk-canary"])

    assert "canary" not in repr(settings) + str(settings) + settings.model_dump_json() + repr(caught.value)


def test_what_is_shipped_is_there() -> None:
    assert (shipped("config") / "models").is_dir()
    assert shipped("migrations").parent == shipped("config").parent


def test_a_secret_comes_from_the_environment_before_the_file(tmp_path: Path) -> None:
    file = _written(tmp_path, '# of the office\nONE=sk-one\n\n TWO = "sk=two" \nEMPTY=\n', name="secrets")
    file.chmod(0o600)
    settings = Settings(secrets_file=file)

    assert settings.secret("ONE") == "sk-one"
    assert settings.secret("TWO") == "sk=two"
    assert settings.secret("EMPTY") is None
    assert settings.secret("THREE") is None
    os.environ["ONE"] = "sk-other"
    assert settings.secret("ONE") == "sk-other"
    os.environ["ONE"] = " "
    assert settings.secret("ONE") == "sk-one"
    assert Settings().secret("ONE") is None


def test_a_changed_secret_is_seen(tmp_path: Path) -> None:
    settings = Settings(secrets_file=_written(tmp_path, "ONE=a\n", name="secrets"))
    assert settings.secret("ONE") == "a"

    _written(tmp_path, "ONE=b\n", name="secrets")

    assert settings.secret("ONE") == "b"


@pytest.mark.parametrize("text", ["sk-canary\n", "A NAME=sk-canary\n", "# fine\nexport\n", "=sk-canary\n"])
def test_a_line_that_is_no_secret_is_refused_by_its_number(text: str, tmp_path: Path) -> None:
    settings = Settings(secrets_file=_written(tmp_path, text, name="secrets"))

    with pytest.raises(InvalidInput, match=r"secrets_file, line [12]: NAME=value is needed") as caught:
        settings.secret("ONE")

    assert "canary" not in caught.value.message


def test_a_secrets_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        Settings(secrets_file=tmp_path / "missing").secret("ONE")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_secrets_file_that_others_may_read_is_warned_of(mode: int, warned: bool, tmp_path: Path) -> None:  # noqa: FBT001 - pytest gives it
    file = _written(tmp_path, "ONE=sk-canary\n", name="secrets")
    file.chmod(mode)

    with capture_logs() as logs:
        assert Settings(secrets_file=file).secret("ONE") == "sk-canary"

    assert [each["log_level"] for each in logs] == ["warning"] * warned
    assert "canary" not in str(logs)
