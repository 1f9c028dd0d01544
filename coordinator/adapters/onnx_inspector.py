"""Has a child process look into ONNX bytes. Never imports onnx or onnxruntime: a hostile model hurts the child only."""

import asyncio
import hashlib
import sys
from dataclasses import dataclass

import msgspec

from coordinator.adapters.onnx_confinement import bare_environment
from coordinator.errors import Rejected, StoreUnavailable
from fleet_wire.api import ModelView, TensorSpec

__all__ = ["OnnxInspector"]

_CHECKER = "coordinator.adapters.onnx_checker"


class Findings(msgspec.Struct, frozen=True):
    """What the child says: a description, or in `refused` the one line that says why there is none."""

    refused: str | None = None
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    batch_rows: int | None = None


@dataclass(frozen=True, slots=True)
class OnnxInspector:
    """Each inspection is a process of its own, which takes a good half second; at most `timeout_s`."""

    timeout_s: float = 60.0

    async def inspect(self, model: bytes) -> ModelView:
        """Describe a model that the fleet can run. Raises Rejected("model_refused") with what is wrong in one line."""
        digest = (await asyncio.to_thread(hashlib.sha256, model)).hexdigest()
        findings = await self._ask_child(model)
        if findings.refused is not None:
            raise _refusal(findings.refused)
        return ModelView(digest, len(model), findings.inputs, findings.outputs, findings.batch_rows)

    async def _ask_child(self, model: bytes) -> Findings:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _CHECKER, str(len(model)), str(int(self.timeout_s) + 1)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=bare_environment(),
        )
        try:
            async with asyncio.timeout(self.timeout_s):
                answer, complaint = await child.communicate(model)
        except TimeoutError:
            raise _refusal(f"it was not loaded within {self.timeout_s:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode and child.returncode < 0:
            raise _refusal(f"onnxruntime crashed on it (signal {-child.returncode})")
        try:
            return msgspec.json.decode(answer, type=Findings)
        except msgspec.DecodeError:
            last_line = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise StoreUnavailable("inspector_unavailable", f"models can't be checked here: {last_line}") from None


def _refusal(reason: str) -> Rejected:
    return Rejected("model_refused", f"the model can't be used: {reason}")
