"""Who may ask a server of this machine: not web pages from elsewhere.

A page that the user visits could otherwise reach the viewer through a WebSocket, which browsers let
cross from one site to another, or by pointing its own name at this machine (DNS rebinding).
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

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


@contextlib.contextmanager
def guard_websockets(listens_at: str) -> Iterator[None]:
    """Servers of the package websockets that are started meanwhile answer who `may_ask`.

    viser, which starts them, has no option for it.
    """
    from websockets.asyncio import server

    serve = server.serve

    def serve_guarded(*arguments: Any, process_request: Any = None, **options: Any) -> Any:
        def process(connection: Any, request: Any) -> Any:
            headers = request.headers
            if not may_ask(headers.get("Host"), headers.get("Origin"), listens_at):
                return connection.respond(403, "Open the viewer as localhost.\n")
            return None if process_request is None else process_request(connection, request)

        return serve(*arguments, process_request=process, **options)

    server.serve = serve_guarded  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        server.serve = serve  # type: ignore[misc]
