"""Who may ask: names of this machine, and pages that it served itself."""

import pytest

from jaxrf.viewer.origins import may_ask


@pytest.mark.parametrize("listens_at", ["127.0.0.1", "localhost", "::1"])
@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("localhost:8080", None, True),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("[::1]:8080", "http://localhost:9000", True),
        ("LOCALHOST", "https://LocalHost", True),
        ("evil.example", None, False),
        ("evil.example:8080", "http://evil.example:8080", False),
        ("localhost:8080", "http://evil.example", False),
        ("localhost.evil.example", None, False),
        ("localhost:8080", "http://localhost.evil.example", False),
        ("localhost@evil.example", None, False),
        ("localhost:8080", "null", False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_a_local_server_answers_names_of_this_machine(
    listens_at: str, host: str | None, origin: str | None, answered: bool
) -> None:
    assert may_ask(host, origin, listens_at) == answered


@pytest.mark.parametrize(
    ("host", "origin", "answered"),
    [
        ("box.lan:8080", None, True),
        ("box.lan:8080", "http://box.lan:8080", True),
        ("192.168.0.7:8080", "http://192.168.0.7:8080", True),
        ("box.lan:8080", "http://evil.example", False),
        ("box.lan:8080", "null", False),
    ],
)
def test_a_public_server_answers_pages_of_its_own_name(
    host: str, origin: str | None, answered: bool
) -> None:
    assert may_ask(host, origin, "0.0.0.0") == answered
