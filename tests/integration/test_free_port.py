"""Ports that tests, demos and benchmarks give their servers: one for each, before it is up and while it is down."""

import errno
import socket

import pytest

from idlewheel.brokers import free_port


def test_a_server_listens_ends_and_listens_again_where_nobody_else_can() -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.socket() as other, pytest.raises(OSError) as refused:
            other.bind(("127.0.0.1", port))
        assert refused.value.errno == errno.EADDRINUSE
        with (
            socket.create_server(("127.0.0.1", port)) as server,
            socket.create_connection(("127.0.0.1", port)),
        ):
            server.accept()[0].close()


def test_two_calls_never_give_the_same_port() -> None:
    assert len({free_port() for _ in range(50)}) == 50
