"""Has a child process run an ONNX model on a few rows. Never imports onnxruntime: a hostile model hurts the child only.

The child is kept for the next question about the same model. It has bounded memory and processor time, yields to
everything else on the machine unless somebody waits for it, knows nothing of our environment, and dies with us.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import clock_gettime
from typing import Final

import msgspec

from coordinator.adapters.onnx_confinement import bare_environment
from coordinator.errors import Rejected, StoreUnavailable
from fleet_wire.tensors import Tensor

__all__ = ["PREFIX_BYTES", "OnnxRunner", "Question", "Reply", "frame_of"]

PREFIX_BYTES: Final = 8
_CHILD = "coordinator.adapters.onnx_run"


class Question(msgspec.Struct, frozen=True):
    """Rows to run the model on."""

    rows: int
    inputs: Sequence[Tensor]


class Reply(msgspec.Struct, frozen=True):
    """What the child says: the outputs, or in `error` the one line that says why there are none."""

    outputs: list[Tensor] = []
    error: str | None = None


_decode = msgspec.msgpack.Decoder(Reply).decode
_encode = msgspec.msgpack.Encoder().encode


class OnnxRunner:
    """At most one child, with at most one model; loading it and each question take at most `timeout_s`.

    They take longer on a machine that has no time for the child: it is waited for as long as it computes, and has not
    had half of that time. `niceness` is what the child adds to ours.
    """

    def __init__(self, timeout_s: float = 60.0, answer_bytes: int = 256 << 20, niceness: int = 19) -> None:
        self._timeout_s = timeout_s
        self._niceness = niceness
        self._answer_bytes = answer_bytes
        self._child: asyncio.subprocess.Process | None = None
        self.model: str | None = None
        """Digest of the model that is loaded."""

    async def load(self, digest: str, model: bytes) -> None:
        """Have a new child load a model. Raises Rejected("model_refused", …), StoreUnavailable."""
        await self.close()
        arguments = (len(model), os.getpid(), int(self._timeout_s) + 1, self._niceness)
        try:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _CHILD, *map(str, arguments)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=bare_environment(),
            )
            await self._receive(self._child)  # that it has started
        except (OSError, Rejected) as error:
            raise StoreUnavailable("runner_unavailable", f"models can't be run here: {error}") from None
        reply = await self._ask(model)
        if reply.error is not None:
            await self.close()
            raise Rejected("model_refused", f"the coordinator can't load the model: {reply.error}")
        self.model = digest

    async def run(self, rows: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of the loaded model. Raises Rejected: run_failed, and run_died or run_timed_out without the model."""
        reply = await self._ask(_encode(Question(rows, inputs)))
        if reply.error is not None:
            raise Rejected("run_failed", reply.error)
        return reply.outputs

    async def close(self) -> None:
        """End the child, if there is one."""
        child, self._child, self.model = self._child, None, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _ask(self, question: bytes) -> Reply:
        child = self._child
        if child is None or child.stdin is None:
            raise Rejected("run_died", "the process that ran the model is gone")
        with suppress(ConnectionError):  # it has died, which receiving tells
            child.stdin.write(frame_of(question))
        return await self._receive(child)

    async def _receive(self, child: asyncio.subprocess.Process) -> Reply:
        answer = asyncio.create_task(self._read(child), name="runner answer")
        used_s = begun_s = _processor_s(child.pid)
        try:
            while not (await asyncio.wait({answer}, timeout=self._timeout_s))[0]:
                before_s, used_s = used_s, _processor_s(child.pid)
                if used_s == before_s or used_s - begun_s > self._timeout_s / 2:
                    raise TimeoutError  # noqa: TRY301 - what follows is the same as where the child ends
            return await answer
        except TimeoutError:
            await self.close()
            raise Rejected("run_timed_out", f"it took more than {self._timeout_s:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await child.wait()
            await self.close()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise Rejected("run_died", f"the process that ran the model died ({how})") from None
        except msgspec.DecodeError:
            await self.close()
            raise Rejected("run_died", "the process that ran the model answers nonsense") from None
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            answer.cancel()

    async def _read(self, child: asyncio.subprocess.Process) -> Reply:
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(ConnectionError):
            await child.stdin.drain()
        size = int.from_bytes(await child.stdout.readexactly(PREFIX_BYTES), "little")
        if size > self._answer_bytes:
            await self.close()
            return Reply(error=f"its outputs take {size} bytes, and {self._answer_bytes} are the most")
        return _decode(await child.stdout.readexactly(size))


def _processor_s(pid: int) -> float:
    """What a process has had of the processor: its clock is numbered as clock_getcpuclockid(3) does on Linux.

    Where there is none it counts as having had nothing, so that it is not waited for longer.
    """
    with suppress(OSError):
        return clock_gettime(~pid << 3 | 2)
    return 0.0


def frame_of(message: bytes) -> bytes:
    """A message with its length in front."""
    return len(message).to_bytes(PREFIX_BYTES, "little") + message
