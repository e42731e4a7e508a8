"""A server of one page, which the browser draws by itself."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from jaxrf.core.errors import InputError
from jaxrf.viewer.origins import LOCAL_NAMES, may_ask

# Ports after the one asked for that are tried if other programs use it.
PORTS_TRIED = 100


class PageServer:
    """Serves a page until it is closed.

    Attributes:
      address: of the page.
    """

    def __init__(self, page: bytes, host: str, port: int) -> None:
        """Starts the server in a thread.

        Args:
          page: HTML that needs no other files.
          host, port: where to listen; the next free port if another program uses this one.

        Raises:
          InputError: none of the ports is free.
        """
        self._server = _bind(host, port, page)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        name = "localhost" if host in (*LOCAL_NAMES, "0.0.0.0") else host
        self.address = f"http://{name}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _bind(host: str, port: int, page: bytes) -> ThreadingHTTPServer:
    handler = _make_handler(page, host)
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            return ThreadingHTTPServer((host, candidate), handler)
        except OSError as error:
            reason = error.strerror
    raise InputError(
        f"The page cannot be served at {host}:{port} ({reason}): give another --port or --host."
    )


def _make_handler(page: bytes, listens_at: str) -> type[BaseHTTPRequestHandler]:
    """Answers requests for the page, of those who may ask."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not may_ask(self.headers.get("Host"), self.headers.get("Origin"), listens_at):
                self.send_error(403, "Open the page as localhost")
            elif urlsplit(self.path).path not in ("/", "/index.html"):
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
