"""uvicorn's HTTP/1.1, for clients that offer HTTP/2 along with their request, as Java's and .NET's do."""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_OFFER = re.compile(rb"\r\nupgrade(?=:[ \t]*h2c[ \t]*(?:\r\n|$))", re.IGNORECASE)
_SET_ASIDE = b"\r\nx-offer"  # as long as what it stands for


class TolerantProtocol(HttpToolsProtocol):
    """Sets `Upgrade: h2c` aside before httptools sees it: httptools takes the offer for a change of protocol, ends the
    request there, and the body is lost. A server may pass the offer over (RFC 9110, section 7.8).

    `uvicorn.Config(http=TolerantProtocol)`. Only the head of a request is looked at, never a body.
    """

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection, in order."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its annotation says
        if cycle is None or not cycle.more_body:
            head, blank, rest = data.partition(b"\r\n\r\n")
            if b"h2c" in head.lower():
                data = _OFFER.sub(_SET_ASIDE, head) + blank + rest
        super().data_received(data)
