"""The front door: a client in Python, and the command line. `from idlewheel import Client` is all that users need."""

from typing import TYPE_CHECKING, Any

from idlewheel.errors import BadInput, IdlewheelError, JobFailed, Refused, Unreachable

if TYPE_CHECKING:
    from idlewheel.client import Client, Job

__all__ = ["BadInput", "Client", "IdlewheelError", "Job", "JobFailed", "Refused", "Unreachable"]


def __getattr__(name: str) -> Any:
    # httpx and numpy take a third of a second, which `idlewheel --help` and the agents need not wait for.
    if name in {"Client", "Job"}:
        from idlewheel import client  # noqa: PLC0415

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
