"""A server of one page, which the browser draws by itself."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from jaxrf.core.errors import InputError
from jaxrf.viewer.origins import LOCAL_NAMES, Gate

# Ports after the one asked for that are tried if other programs use it.
PORTS_TRIED = 100
# Asks for the page's number every few seconds, and loads the page again if it has another. The
# address holds the view unless the camera turns by itself.
RELOAD = b"""<script>
{
  let first = null;
  setInterval(async () => {
    const number = await fetch("number", {cache: "no-store"}).then(r => r.text(), () => first);
    first ??= number;
    if (number !== first) location.reload();
  }, 2000);
}
</script>
"""
WAITING = b"""<!doctype html>
<title>Waiting for a checkpoint</title>
<p style="font: 1em sans-serif; margin: 2em">The training has not saved a checkpoint yet.</p>
"""


class PageServer:
    """Serves a page until it is closed; the page may be replaced, and browsers load it again.

    Attributes:
      address: of the page, with a token if others can reach it.
    """

    def __init__(self, page: bytes, host: str, port: int) -> None:
        """Starts the server in a thread.

        Args:
          page: HTML that needs no other files.
          host, port: where to listen; the next free port if another program uses this one.

        Raises:
          InputError: none of the ports is free.
        """
        self._pages, gate = [page], Gate.of(host)
        self._server = _bind(host, port, self._pages, gate)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        name = "localhost" if host in (*LOCAL_NAMES, "0.0.0.0") else host
        self.address = f"http://{name}:{self._server.server_address[1]}{gate.query}"

    def replace(self, page: bytes) -> None:
        """Serves another page; browsers that show the one before load it within seconds."""
        # Earlier ones count, but need not be kept.
        self._pages.append(page)
        self._pages[-2] = b""

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _bind(host: str, port: int, pages: list[bytes], gate: Gate) -> ThreadingHTTPServer:
    handler = _make_handler(pages, gate)
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            return ThreadingHTTPServer((host, candidate), handler)
        except OSError as error:
            reason = error.strerror
    raise InputError(
        f"The page cannot be served at {host}:{port} ({reason}): give another --port or --host."
    )


def _make_handler(pages: list[bytes], gate: Gate) -> type[BaseHTTPRequestHandler]:
    """Answers those whom a gate lets in with the last of some pages, or with its number."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked = (self.headers.get(name) for name in ("Host", "Origin", "Cookie"))
            if (sentence := gate.refusal(self.path, *asked)) is not None:
                self.send_error(403, sentence)
            elif path in ("/", "/index.html"):
                self._answer(pages[-1] + RELOAD, "text/html")
            elif path == "/number":
                self._answer(str(len(pages)).encode(), "text/plain")
            else:
                self.send_error(404)

        def _answer(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            if gate.brings_token(self.path):
                self.send_header("Set-Cookie", gate.cookie)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
