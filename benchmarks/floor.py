"""What bare MQTT does at QoS 1 with our own session: the floors of `dispatch` and `telemetry`. Nothing is stored.

`echo PORT NAME` sends back what it gets; `ask PORT COUNT NAME...` keeps a window of requests under way and counts the
answers, one run a line of its input; `count PORT FILTER` acknowledges what it gets and says how much, ten times a
second.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

import uvloop

from benchmarks.child import hear, say
from fleet_link import ConnectOptions, LinkLost, connect

HOST: Final = "127.0.0.1"
PAYLOAD: Final = bytes(range(256)) * 4
WINDOW: Final = 512
_SAY_EVERY_S: Final = 0.1


async def echo(port: int, name: str) -> None:
    session = await connect(ConnectOptions(HOST, port, f"echo-{name}"))
    await session.subscribe([(f"floor/{name}/in", 1)])
    ending = asyncio.create_task(asyncio.to_thread(hear), name="end of input")
    ending.add_done_callback(lambda _: session.abort())
    say(ready=True)
    try:
        while True:
            messages = await session.receive()
            for message in messages:
                await session.drain()
                session.publish_soon(f"floor/{name}/out", message.payload)
            session.acknowledge(messages)
    except LinkLost:
        return


async def ask(port: int, count: int, names: Sequence[str]) -> None:
    session = await connect(ConnectOptions(HOST, port, "ask"))
    await session.subscribe([("floor/+/out", 1)])
    topics = [f"floor/{name}/in" for name in names]
    say(ready=True)
    while await asyncio.to_thread(hear):
        started_s = time.perf_counter()
        sent = got = 0
        while got < count:
            while sent < min(count, got + WINDOW):
                await session.drain()
                session.publish_soon(topics[sent % len(topics)], PAYLOAD)
                sent += 1
            messages = await session.receive()
            session.acknowledge(messages)
            got += len(messages)
        say(per_s=count / (time.perf_counter() - started_s))


async def count_messages(port: int, pattern: str) -> None:
    session = await connect(ConnectOptions(HOST, port, "count"))
    await session.subscribe([(pattern, 1)])
    counted = 0

    async def speak() -> None:
        while True:
            say(counted=counted, at_s=time.perf_counter())
            await asyncio.sleep(_SAY_EVERY_S)

    speaking = asyncio.create_task(speak(), name="speak")
    ending = asyncio.create_task(asyncio.to_thread(hear), name="end of input")
    ending.add_done_callback(lambda _: session.abort())
    try:
        while True:
            messages = await session.receive()
            session.acknowledge(messages)
            counted += len(messages)
    except LinkLost:
        speaking.cancel()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        match sys.argv[1:]:
            case ["echo", port, name]:
                runner.run(echo(int(port), name))
            case ["ask", port, count, *names]:
                runner.run(ask(int(port), int(count), names))
            case ["count", port, pattern]:
                runner.run(count_messages(int(port), pattern))


if __name__ == "__main__":
    main()
