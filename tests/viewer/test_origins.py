"""Who may ask: names of this machine, and pages that it served itself."""

import pytest

from jaxrf.viewer.origins import Gate, may_ask


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


def test_a_server_of_this_machine_alone_asks_for_no_token() -> None:
    gate = Gate.of("127.0.0.1")
    assert gate.token is None and gate.query == ""
    assert gate.refusal("/", "localhost:8080", None, None) is None
    assert not gate.brings_token("/?jaxrf_token=")


def test_a_server_that_others_reach_asks_for_its_token() -> None:
    gate, other = Gate.of("0.0.0.0"), Gate.of("0.0.0.0")
    assert gate.token and gate.token != other.token
    host = "box.lan:8080"
    for path, cookies in (
        ("/", None),
        ("/", ""),
        ("/?jaxrf_token=", None),
        (f"/?jaxrf_token={other.token}", None),
        (f"/?token={gate.token}", None),
        ("/?jaxrf_token=\u00e9", "jaxrf_token=\u00e9"),
        ("/", f"jaxrf_token={other.token}"),
        ("/", f"other={gate.token}"),
        ("/", "a=b; ; =;jaxrf_token"),
    ):
        assert "token" in (gate.refusal(path, host, None, cookies) or ""), (path, cookies)
    for path, cookies in (
        (gate.query, None),
        (f"/?x=1&jaxrf_token={gate.token}", "jaxrf_token=old"),
        ("/assets/index.js", f"jaxrf_token={gate.token}"),
        ("/", f"theme=dark; jaxrf_token={gate.token}"),
    ):
        assert gate.refusal(path, host, None, cookies) is None, (path, cookies)
    # The token does not open it for pages of other names.
    evil = "http://evil.example"
    assert gate.refusal(gate.query, host, evil, None) == "Open the viewer as localhost."
    assert "HttpOnly" in gate.cookie and "SameSite=Strict" in gate.cookie
