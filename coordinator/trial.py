"""Tries out, before a job that is to be verified is accepted, whether its rows can be verified at all. Changes nothing.

Cars compute rows in batches of different sizes. With some models a row's outputs depend on that, so that honest cars
would contradict each other, and be convicted for it.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from coordinator.errors import Rejected
from coordinator.model import Job, Model
from coordinator.ports import BlobStore, InputReader, ModelRunner
from coordinator.rules.verification import agreement
from fleet_wire.errors import WireError
from fleet_wire.tensors import Array, decode_tensors

__all__ = ["Trial"]

_ROWS: Final = 8
_BATCH_ROWS: Final = 128
_BATCH_BYTES: Final = 16 << 20
_MARGIN: Final = 4  # of what is advised above what was seen


class Trial:
    """Computes a few rows of a job alone and in one larger batch; each trial has a process of its own."""

    def __init__(self, inputs: InputReader, blobs: BlobStore, new_runner: Callable[[], ModelRunner]) -> None:
        self._inputs = inputs
        self._blobs = blobs
        self._new_runner = new_runner

    async def check(self, job: Job, model: Model) -> None:
        """Raises Rejected: tolerance_needed, output_unknown (of a tolerance), not_verifiable; ResourceMissing."""
        if not job.terms.is_verified:
            return
        terms = job.terms.verification
        named = {spec.name for spec in model.outputs}
        if unknown := sorted(terms.tolerances.keys() - named):
            outputs = ", ".join(sorted(named))
            raise Rejected("output_unknown", f"a tolerance is for {unknown[0]!r}; the model's outputs are: {outputs}")
        runner = self._new_runner()
        try:
            await runner.load(model.digest, await self._blobs.whole(model.digest))
            alone, together = await self._both_ways(job, model, runner)
        except WireError as error:
            raise _not_verifiable(error.detail) from None
        except Rejected as error:
            if error.code == "run_failed":  # rows that the model fails on are reported by the job
                return
            raise _not_verifiable(error.detail) from None
        finally:
            await runner.close()
        for name, ours in alone.items():
            theirs = together[name]
            if not agreement({name: ours}, {name: theirs}, terms.tolerances, same_class=False).all():
                raise _refusal(name, ours, theirs)

    async def _both_ways(
        self, job: Job, model: Model, runner: ModelRunner
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Outputs of the first rows: each computed alone, and together with those that follow."""
        most = max(1, min(job.rows, model.batch_rows or _BATCH_ROWS, _BATCH_BYTES // max(1, job.row_bytes)))
        rows = min(_ROWS, most)
        together = decode_tensors(await runner.run(most, await self._inputs.gather(job.inputs, [(0, most)])))
        singles: list[dict[str, Array]] = []
        for row in range(rows):
            alone = await self._inputs.gather(job.inputs, [(row, row + 1)])
            singles.append(decode_tensors(await runner.run(1, alone)))
        for outputs, count in ((together, most), *((single, 1) for single in singles)):
            if any(not array.ndim or len(array) != count for array in outputs.values()):
                raise _not_verifiable("its outputs do not have a row for each row of the inputs")
        try:
            joined = {name: np.concatenate([single[name] for single in singles]) for name in together}
        except ValueError:
            raise _not_verifiable("its outputs have another shape when rows are computed alone") from None
        return joined, {name: array[:rows] for name, array in together.items()}


def _refusal(name: str, ours: Array, theirs: Array) -> Rejected:
    """What a tolerance would have to be, where one helps."""
    what = f"output {name!r} of a row is another one when the row is computed alone than in a large batch"
    if ours.shape != theirs.shape or ours.dtype.kind in "biuOU":
        return _not_verifiable(f"{what}, and cars choose their batches")
    with np.errstate(all="ignore"):
        apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    most = float(np.max(apart, initial=0.0, where=np.isfinite(apart)))
    return Rejected(
        "tolerance_needed",
        f"{what}, by up to {most:.2g}, and cars choose their batches: give a tolerance that lets that pass, as in "
        f"--tolerance {name}={_MARGIN * most:.1g}:0",
    )


def _not_verifiable(detail: str) -> Rejected:
    return Rejected("not_verifiable", f"this model's rows can't be verified, so that only `none` will do: {detail}")
