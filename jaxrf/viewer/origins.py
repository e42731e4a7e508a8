"""Decides who may ask a server of this machine: no other page, and no one without its token.

A page that the user visits could otherwise reach the viewer through a WebSocket, which browsers let
cross from one site to another, or by pointing its own name at this machine (DNS rebinding). Where
others can reach the server, it answers those who have its address with the token in it.
"""

import contextlib
import dataclasses
import hmac
import secrets
from collections.abc import Iterator
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

# Of the token, in an address and as a cookie.
TOKEN = "jaxrf_token"
# Names of this machine, under which what listens here alone may be asked for.
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def may_ask(host: str | None, origin: str | None, listens_at: str) -> bool:
    """Whether to answer a request.

    Args:
      host: its Host header: the name that the server was asked for under.
      origin: its Origin header: the page that asks, if a page does.
      listens_at: address that the server listens at. At one of this machine alone, only names of
        this machine are answered; elsewhere any name is, and pages of the same name.
    """
    name = urlsplit(f"//{host or ''}").hostname
    asking = None if origin in (None, "null") else urlsplit(origin).hostname
    if listens_at in LOCAL_NAMES:
        return name in LOCAL_NAMES and (origin is None or asking in LOCAL_NAMES)
    return origin is None or asking == name


@dataclasses.dataclass(frozen=True)
class Gate:
    """Who a server answers.

    Attributes:
      listens_at: address that the server listens at.
      token: that a browser has to bring, in the address that it opens first and from then on as a
        cookie; None to ask for none.
    """

    listens_at: str
    token: str | None = None

    @classmethod
    def of(cls, listens_at: str) -> "Gate":
        """The gate of a server, with a new token unless only this machine can reach it."""
        token = None if listens_at in LOCAL_NAMES else secrets.token_urlsafe(16)
        return cls(listens_at, token)

    @property
    def query(self) -> str:
        """The end of the page's address, with the token; empty without one."""
        return "" if self.token is None else f"/?{TOKEN}={self.token}"

    def refusal(
        self, path: str, host: str | None, origin: str | None, cookies: str | None
    ) -> str | None:
        """A sentence for those who are not answered, else None.

        Args:
          path: that is asked for, with its query.
          host, origin: as in `may_ask`.
          cookies: the Cookie header.
        """
        if not may_ask(host, origin, self.listens_at):
            return "Open the viewer as localhost."
        if self.token is None or self.brings_token(path) or self._is_token(_read_cookie(cookies)):
            return None
        return "Open the address that jaxrf has printed, with its token."

    def brings_token(self, path: str) -> bool:
        """Whether an address has the token, which the browser is then given as a cookie."""
        return self.token is not None and any(
            map(self._is_token, parse_qs(urlsplit(path).query).get(TOKEN, []))
        )

    @property
    def cookie(self) -> str:
        """The Set-Cookie header that gives a browser the token."""
        return f"{TOKEN}={self.token}; Path=/; HttpOnly; SameSite=Strict"

    def _is_token(self, text: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(text.encode(), self.token.encode())


def _read_cookie(cookies: str | None) -> str:
    """The token among the cookies of a request; empty without one."""
    try:
        morsel = SimpleCookie(cookies or "").get(TOKEN)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


@contextlib.contextmanager
def guard_websockets(gate: Gate) -> Iterator[None]:
    """Servers of the package websockets that are started meanwhile answer whom a gate lets in.

    viser, which starts them, has no option for it.
    """
    from websockets.asyncio import server

    serve = server.serve

    def serve_guarded(*arguments: Any, process_request: Any = None, **options: Any) -> Any:
        def process(connection: Any, request: Any) -> Any:
            headers = request.headers
            asked = headers.get("Host"), headers.get("Origin"), headers.get("Cookie")
            if (sentence := gate.refusal(request.path, *asked)) is not None:
                return connection.respond(403, sentence + "\n")
            response = None if process_request is None else process_request(connection, request)
            if response is not None and gate.brings_token(request.path):
                response.headers["Set-Cookie"] = gate.cookie
            return response

        return serve(*arguments, process_request=process, **options)

    server.serve = serve_guarded  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        server.serve = serve  # type: ignore[misc]
