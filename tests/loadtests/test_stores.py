"""A redis-server lives as long as its block."""

import socket
from urllib.parse import urlsplit

import pytest

from loadtests import stores
from loadtests.target import LoadError


@pytest.mark.redis
def test_it_answers_within_the_block_and_not_after_it():
    with stores.redis() as url:
        port = urlsplit(url).port
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(16) == b"+PONG\r\n"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):  # noqa: PT011
        pytest.fail("it is still there")


def test_a_missing_server_is_said_with_the_remedy(monkeypatch):
    monkeypatch.setattr(stores, "BINARY", "no-such-redis-server")
    with pytest.raises(LoadError, match="apt-get install"), stores.redis():
        pytest.fail("it started")
