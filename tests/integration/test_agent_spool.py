"""Result messages on the disk and on their way out: in order, bounded, and forgotten only when acknowledged."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fleet_link import ConnectOptions, Message, connect
from fleet_link import Session as Link
from idlewheel.brokers import Broker
from vehicle_agent.outbox import Outbox
from vehicle_agent.spool import Outgoing, Spool

TOPIC = "iw/v1/test/job/j/res/car"
TRACE = (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "vendor=opaque"))


@pytest.fixture
def counters() -> Counter[str]:
    return Counter()


@pytest.fixture
def spool(tmp_path: Path, counters: Counter[str]) -> Iterator[Spool]:
    spool = Spool.open(tmp_path / "spool", 1000, counters)
    yield spool
    spool.close()


def kept(spool: Spool) -> list[bytes]:
    return [message.payload for _, message in spool.between(0, spool.last_id(), 1000)]


def rows(payload: bytes) -> Outgoing:
    return Outgoing(TOPIC, payload)


def test_messages_come_back_in_order_until_they_are_removed(spool: Spool) -> None:
    spool.put([Outgoing(TOPIC, b"1", TRACE), rows(b"2")])
    spool.put([rows(b"3")])
    assert spool.between(0, spool.last_id(), 2) == [(1, Outgoing(TOPIC, b"1", TRACE)), (2, rows(b"2"))]
    spool.remove(1)
    spool.remove(1)
    assert kept(spool) == [b"2", b"3"]


def test_above_the_bound_the_oldest_are_shed_and_counted(spool: Spool, counters: Counter[str]) -> None:
    for number in range(5):
        spool.put([rows(bytes([number]) * 300)])
    assert [payload[0] for payload in kept(spool)] == [2, 3, 4]
    assert counters["spool_shed"] == 2
    spool.put([rows(bytes(2000))])
    assert kept(spool) == []


def test_what_was_put_in_survives_a_kill(tmp_path: Path, counters: Counter[str]) -> None:
    script = """
import os, signal, sys
from collections import Counter
from pathlib import Path
from vehicle_agent.spool import Outgoing, Spool
spool = Spool.open(Path(sys.argv[1]), 1000, Counter())
spool.put([Outgoing("t", b"a"), Outgoing("t", b"b")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "spool")], check=False)
    assert ended.returncode == -9
    spool = Spool.open(tmp_path / "spool", 1000, counters)
    assert kept(spool) == [b"a", b"b"]
    spool.put([rows(bytes(1000))])  # the bytes from before the kill count
    assert counters["spool_shed"] == 2
    spool.close()


def test_a_file_from_before_traces_were_kept_is_taken_over(tmp_path: Path, counters: Counter[str]) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "spool")) as older:
        older.execute(
            "CREATE TABLE message (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL)"
        )
        older.execute("INSERT INTO message (topic, payload) VALUES (?, ?)", (TOPIC, b"old"))
        older.commit()
    for _ in range(2):
        with contextlib.closing(Spool.open(tmp_path / "spool", 1000, counters)) as spool:
            assert spool.between(0, spool.last_id(), 2) == [(1, rows(b"old"))]


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, counters: Counter[str]) -> None:
    (tmp_path / "spool").write_bytes(b"not what SQLite wrote" * 100)
    for _ in range(2):
        with contextlib.closing(Spool.open(tmp_path / "spool", 1000, counters)) as spool:
            spool.put([rows(b"new")])
    with contextlib.closing(Spool.open(tmp_path / "spool", 1000, counters)) as spool:
        assert kept(spool) == [b"new", b"new"]
    assert (tmp_path / "spool.unreadable").read_bytes().startswith(b"not what SQLite wrote")
    assert counters["spool_unreadable"] == 1


def test_a_full_disk_loses_new_messages_counted_and_no_older_one(tmp_path: Path, counters: Counter[str]) -> None:
    database = sqlite3.connect(tmp_path / "spool", isolation_level=None)
    with contextlib.closing(Spool.open(tmp_path / "spool", 1 << 20, counters)) as first:
        first.put([rows(b"kept")])
    database.execute("PRAGMA max_page_count = 4")  # SQLite says the same of it as of a full disk
    with contextlib.closing(Spool(database, 1 << 20, counters)) as spool:
        spool.put([rows(bytes(10_000)), rows(b"in one transaction with it")])
        spool.put([rows(b"fits")])
        assert kept(spool) == [b"kept", b"fits"]
    assert (counters["spool_failed"], counters["spooled"]) == (2, 2)


@pytest.fixture
async def link(broker: Broker) -> AsyncIterator[Link]:
    session = await connect(ConnectOptions(broker.host, broker.port, "car"))
    yield session
    await session.close()


@contextlib.asynccontextmanager
async def listener(broker: Broker) -> AsyncIterator[Link]:
    session = await connect(ConnectOptions(broker.host, broker.port, "coordinator"))
    await session.subscribe([("iw/v1/test/job/+/res/+", 1)])
    yield session
    await session.close()


async def receive(link: Link, count: int) -> list[Message]:
    heard: list[Message] = []
    async with asyncio.timeout(60):
        while len(heard) < count:
            messages = await link.receive()
            heard += messages
            link.acknowledge(messages)
    return heard


async def hear(link: Link, count: int) -> list[bytes]:
    return [message.payload for message in await receive(link, count)]


async def test_what_was_spooled_is_sent_first_and_removed_when_acknowledged(
    broker: Broker, spool: Spool, link: Link, counters: Counter[str]
) -> None:
    outbox = Outbox(spool, counters, lambda full: None, window=4)
    for number in range(50):
        outbox.put(TOPIC, b"spooled %d" % number, outlives_link=True)
    outbox.put(TOPIC, b"a refusal", outlives_link=False)
    assert len(kept(spool)) == 50
    async with listener(broker) as side:
        outbox.online(link)
        outbox.put(TOPIC, b"fresh", outlives_link=True)
        await outbox.flush()
        heard = await hear(side, 51)
    assert sorted(heard) == sorted([b"spooled %d" % number for number in range(50)] + [b"fresh"])
    assert [each for each in heard if each != b"fresh"] == [b"spooled %d" % number for number in range(50)]
    assert kept(spool) == []


async def test_what_was_spooled_still_belongs_to_its_trace(
    broker: Broker, spool: Spool, link: Link, counters: Counter[str]
) -> None:
    outbox = Outbox(spool, counters, lambda full: None, window=1)
    async with listener(broker) as side:
        outbox.online(link)
        outbox.put(TOPIC, b"sent", outlives_link=True, properties=TRACE)
        outbox.put(TOPIC, b"not sent", outlives_link=True, properties=TRACE)
        outbox.offline()
        outbox.put(TOPIC, b"later", outlives_link=True, properties=TRACE)
        outbox.put(TOPIC, b"untraced", outlives_link=True)
        outbox.online(link)
        await outbox.flush()
        told = {each.payload: tuple(each.user_properties) for each in await receive(side, 5)}
    assert told == {b"sent": TRACE, b"not sent": TRACE, b"later": TRACE, b"untraced": ()}


async def test_what_is_not_acknowledged_when_the_link_breaks_is_spooled_once(
    broker: Broker, spool: Spool, link: Link, counters: Counter[str]
) -> None:
    outbox = Outbox(spool, counters, lambda full: None, window=2)
    spool.put([rows(b"old")])
    outbox.online(link)
    for number in range(5):
        outbox.put(TOPIC, b"%d" % number, outlives_link=number != 3)
    link.abort()
    await link.close()
    outbox.offline()
    await outbox.flush()
    assert kept(spool) == [b"old", b"0", b"1", b"2", b"4"]


@pytest.mark.parametrize("broker", ["mosquitto"], indirect=True)
async def test_what_nobody_heard_is_kept_until_somebody_listens(
    broker: Broker, spool: Spool, link: Link, counters: Counter[str]
) -> None:
    outbox = Outbox(spool, counters, lambda full: None)
    outbox.online(link)
    outbox.put(TOPIC, b"rows", outlives_link=True)
    outbox.put(TOPIC, b"refusal", outlives_link=False)
    await outbox.flush()
    assert kept(spool) == [b"rows"]
    assert counters["result_unheard"] == 2
    async with listener(broker) as side:
        outbox.retry()
        await outbox.flush()
        assert await hear(side, 1) == [b"rows"]
    assert kept(spool) == []


async def test_it_says_when_it_is_full_and_when_it_has_room(
    broker: Broker, spool: Spool, link: Link, counters: Counter[str]
) -> None:
    said: list[bool] = []
    outbox = Outbox(spool, counters, said.append, window=1, max_bytes=100)
    async with listener(broker) as side:
        outbox.online(link)
        for _ in range(5):
            outbox.put(TOPIC, bytes(30), outlives_link=True)
        assert said == [True]
        await outbox.flush()
        assert said == [True, False]
        assert len(await hear(side, 5)) == 5


async def test_a_message_above_what_the_server_takes_is_counted_and_left_out(
    broker: Broker, tmp_path: Path, counters: Counter[str]
) -> None:
    spool = Spool.open(tmp_path / "spool", 1 << 20, counters)
    link = await connect(ConnectOptions(broker.host, broker.port, "car", max_packet_size=1000))
    outbox = Outbox(spool, counters, lambda full: None)
    spool.put([rows(bytes(2000))])
    async with listener(broker) as side:
        outbox.online(link)
        outbox.put(TOPIC, bytes(2000), outlives_link=True)
        outbox.put(TOPIC, b"small", outlives_link=True)
        await outbox.flush()
        assert await hear(side, 1) == [b"small"]
    assert (counters["result_unsendable"], kept(spool)) == (2, [])
    await link.close()
    spool.close()
