"""The server of one page: what it answers, and to whom."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from jaxrf.core.errors import InputError
from jaxrf.viewer import page_server
from jaxrf.viewer.page_server import PageServer

PAGE = b"<!doctype html><title>ball</title>"


@pytest.fixture
def server() -> Iterator[PageServer]:
    server = PageServer(PAGE, "127.0.0.1", 18080)
    yield server
    server.close()


def status(address: str, host: str | None = None) -> int:
    request = urllib.request.Request(address, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_serves_the_page_and_nothing_else(server: PageServer) -> None:
    with urllib.request.urlopen(server.address) as response:
        assert response.read() == PAGE + page_server.RELOAD
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert status(server.address + "/index.html?x=1") == 200
    for path in ("/other", "/../etc/passwd", "/index.html/.."):
        assert status(server.address + path) == 404


def read(address: str) -> bytes:
    with urllib.request.urlopen(address) as response:
        return bytes(response.read())


def test_a_page_that_is_replaced_has_another_number(server: PageServer) -> None:
    first = read(server.address + "/number")
    assert read(server.address + "/number") == first
    server.replace(b"<!doctype html><title>later</title>")
    assert read(server.address + "/number") != first
    assert b"later" in read(server.address) and b"ball" not in read(server.address)


def test_it_is_not_served_under_the_name_of_another_machine(server: PageServer) -> None:
    assert status(server.address, "evil.example") == 403
    assert status(server.address, "evil.example:18080") == 403
    assert status(server.address, "127.0.0.1:18080") == 200
    assert status(server.address, "[::1]:18080") == 200


def test_the_next_port_is_taken_if_one_is_in_use(server: PageServer) -> None:
    first = int(server.address.rpartition(":")[2])
    second = PageServer(PAGE, "127.0.0.1", first)
    try:
        assert int(second.address.rpartition(":")[2]) > first
        assert status(second.address) == 200
    finally:
        second.close()


def test_no_free_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "PORTS_TRIED", 1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"at 127.0.0.1:{port} .*give another"):
            PageServer(PAGE, "127.0.0.1", port)


def test_a_page_that_others_reach_is_served_with_its_token_alone() -> None:
    server = PageServer(PAGE, "0.0.0.0", 18180)
    try:
        address, _, query = server.address.partition("/?")
        assert address.startswith("http://localhost:") and query.startswith("jaxrf_token=")
        assert status(address) == 403 and status(address + "/number") == 403
        with urllib.request.urlopen(server.address) as response:
            cookie = response.headers["Set-Cookie"].partition(";")[0]
        request = urllib.request.Request(address + "/number", headers={"Cookie": cookie})
        with urllib.request.urlopen(request) as response:
            assert response.status == 200 and "Set-Cookie" not in response.headers
    finally:
        server.close()
