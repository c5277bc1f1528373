"""What the settings say of other servers: the keys, which of them may be sent where, and the way there."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import structlog

from appliance.embedding.spec import RemoteSpec
from appliance.errors import EngineUnavailable, InvalidInput

log = structlog.get_logger(__name__)

_NEAR = ("localhost", "local", "internal", "lan", "home.arpa")
"""Ends of names that only a local network gives: RFC 6761, 6762, 8375, ICANN's `internal`, and custom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What the settings say of every model that another server runs.

    Attributes:
        secret: the secret of a name, None where there is none.
        failures: of a server, in a row, until it is left alone.
        pause: seconds that it is left alone before it is tried again.
    """

    secret: Callable[[str], str | None] = lambda _name: None
    failures: int = 3
    pause: float = 30.0


def key_of(spec: RemoteSpec, remote: Remote) -> str:
    """The key that a card's servers are sent; empty where it names none.

    Raises:
        EngineUnavailable: there is no secret of that name or no reading it, or it fits into no header, or one of the
            servers would be sent it in the clear, over a network that is not known to be private.
    """
    if not spec.key:
        return ""
    try:
        key = remote.secret(spec.key)
    except InvalidInput as error:  # tells of a file, which is not for every caller to read
        log.warning("no secrets", reason=error.message)
        raise EngineUnavailable(f"{spec.name} needs the key {spec.key}, and secrets_file cannot be used") from error
    if not key:
        raise EngineUnavailable(f"{spec.name} needs the key {spec.key}: set it in the environment or in secrets_file")
    if not re.fullmatch(r"[!-~]+", key):
        raise EngineUnavailable(f"the secret {spec.key} of {spec.name} is not one word of printable ASCII characters")
    for url in spec.urls:
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_near(parts.hostname or ""):
            raise EngineUnavailable(
                f"{spec.name} would send the key {spec.key} in the clear to {parts.hostname}: use an https address"
            )
    return key


def is_near(host: str) -> bool:
    """Whether a host is this machine or, by its address or name, in a private network. Nothing is looked up."""
    try:
        return not ip_address(host).is_global
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or any(name.endswith(f".{end}") for end in _NEAR)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for a server (HTTPS_PROXY, NO_PROXY): of https, and never on loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https" or _is_loopback(host) or proxy_bypass(parts.netloc) or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get("https") or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".").endswith("localhost")
