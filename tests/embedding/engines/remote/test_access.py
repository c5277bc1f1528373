"""Which key is sent where."""

import pytest

from appliance.embedding.engines.remote.access import Remote, is_near, key_of, proxy_for
from appliance.embedding.spec import RemoteSpec
from appliance.errors import EngineUnavailable, InvalidInput


def card(*urls: str, key: str = "A_KEY") -> RemoteSpec:
    return RemoteSpec(
        name="far",
        family="bert",
        engine="remote",
        provider="openai",
        model="m",
        urls=urls,
        key=key,
        dimensions=4,
        max_tokens=10,
    )


def holding(**secrets: str) -> Remote:
    return Remote(secret=secrets.get)


def test_the_key_of_the_card_is_the_secret_of_that_name() -> None:
    assert key_of(card("https://api.example.com/v1"), holding(A_KEY="sk-1", OTHER="sk-2")) == "sk-1"
    assert key_of(card("http://api.example.com/v1", key=""), holding(A_KEY="sk-1")) == ""


def test_a_missing_key_is_told_with_its_name_and_where_to_put_it() -> None:
    with pytest.raises(EngineUnavailable, match=r"far needs the key A_KEY: set it in the environment or in secrets_f"):
        key_of(card("https://api.example.com/v1"), Remote())


def test_secrets_that_cannot_be_read_are_told_without_the_file() -> None:
    def secret(_name: str) -> str | None:
        raise InvalidInput("secrets_file cannot be read: /a/place")

    with pytest.raises(EngineUnavailable, match="A_KEY") as caught:
        key_of(card("https://api.example.com/v1"), Remote(secret=secret))

    assert "/a/place" not in caught.value.message


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_fits_into_no_header_is_refused_unseen(key: str) -> None:
    with pytest.raises(EngineUnavailable, match="A_KEY") as caught:
        key_of(card("https://api.example.com/v1"), holding(A_KEY=key))

    assert key not in caught.value.message


def test_a_key_is_not_sent_in_the_clear_through_a_public_network() -> None:
    with pytest.raises(EngineUnavailable, match=r"A_KEY in the clear to api\.example\.com"):
        key_of(card("http://127.0.0.1/v1", "http://api.example.com/v1"), holding(A_KEY="sk-1"))
    assert key_of(card("http://127.0.0.1/v1", "http://board:8080/v1"), holding(A_KEY="sk-1")) == "sk-1"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.7", "100.64.0.1", "fe80::1", "localhost", "board", "b.local"]
)
def test_a_private_address_is_near(host: str) -> None:
    assert is_near(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1", "example.com", "localhost.example.com", "notlocal.com"])
def test_a_public_address_is_not(host: str) -> None:
    assert not is_near(host)


def test_the_environments_proxy_is_for_https_and_never_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://other:3128")
    assert proxy_for("https://api.example.com/v1") == "http://proxy:3128"
    assert proxy_for("http://api.example.com/v1") is None
    assert proxy_for("https://localhost:8443") is None
    assert proxy_for("https://127.0.0.1:8443") is None

    monkeypatch.setenv("NO_PROXY", "example.com")

    assert proxy_for("https://api.example.com/v1") is None
