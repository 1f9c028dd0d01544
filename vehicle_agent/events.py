"""What happens to a vehicle's session, and what the session wants done. Data only."""

from dataclasses import dataclass

from fleet_wire.messages import BlobRef, Failure, Refusal, Rows, Task
from fleet_wire.policy import OwnerPolicy
from fleet_wire.tensors import Array
from vehicle_agent.policy import IneligibleReason, Level
from vehicle_agent.results import ByReference

__all__ = [
    "BatchFailed",
    "BatchRan",
    "Command",
    "Connected",
    "Drained",
    "Event",
    "FetchInputs",
    "FetchModel",
    "InputsArrived",
    "InputsUnavailable",
    "JobCancelled",
    "Judged",
    "KillWorker",
    "LoadModel",
    "ModelArrived",
    "ModelLoaded",
    "ModelUnavailable",
    "ModelUnusable",
    "OutboxFilled",
    "PolicyChanged",
    "Run",
    "Send",
    "ShutDown",
    "TaskOffered",
    "Tick",
    "UploadFailed",
    "WorkerDied",
    "WorkerUnwatched",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection is open under a new epoch; a message's payload may have this many bytes."""

    epoch: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Judged:
    """The car's own rules have spoken: None means that it may work, else `level` says how work ends.

    `compute_w` is what the worker's threads draw above idle, `awake_w` what the car draws only because work keeps it
    awake.
    """

    reason: IneligibleReason | None
    compute_w: float
    awake_w: float
    level: Level = Level.KILL


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """The owner's policy is another one from now on, None when there is none; what relied on the last one ends."""

    policy: OwnerPolicy | None


@dataclass(frozen=True, slots=True, eq=False)
class TaskOffered:
    """A task came in."""

    task: Task


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """These chunks of a job are not wanted any more; none named means all."""

    job: str
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Drained:
    """Take nothing new; finish what is held."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The agent ends: give everything back at once."""


@dataclass(frozen=True, slots=True)
class ModelArrived:
    """A model's file is on the disk, checked."""

    digest: str


@dataclass(frozen=True, slots=True)
class ModelUnavailable:
    """A model could not be fetched."""

    digest: str
    detail: str


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The worker has a model ready; `batch_rows` is its fixed batch, None when it takes any."""

    digest: str
    batch_rows: int | None


@dataclass(frozen=True, slots=True)
class ModelUnusable:
    """The runtime can't load a model, or it has not the form of rows in, rows out."""

    digest: str
    error: str


@dataclass(frozen=True, slots=True, eq=False)
class InputsArrived:
    """The inputs of the task that was numbered `task`."""

    task: int
    inputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class InputsUnavailable:
    """They could not be fetched."""

    task: int
    detail: str


@dataclass(frozen=True, slots=True, eq=False)
class BatchRan:
    """The worker computed the oldest batch in `compute_ms`, during `processor_ms` of which each of its threads ran."""

    outputs: dict[str, Array]
    compute_ms: float
    processor_ms: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The model raised an error on the oldest batch; `by_row` says that some of its rows may be innocent."""

    error: str
    by_row: bool


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """The worker's process ended without being told to."""

    detail: str


@dataclass(frozen=True, slots=True)
class WorkerUnwatched:
    """The worker ended itself, because nobody looked at the car for too long: the agent stood still."""


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """Outputs could not be stored as a blob: their rows are given back."""

    rows: Rows
    detail: str


@dataclass(frozen=True, slots=True)
class OutboxFilled:
    """The outbox takes no more for now, or has room again."""

    full: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Connected
    | Judged
    | PolicyChanged
    | TaskOffered
    | JobCancelled
    | Drained
    | ShutDown
    | ModelArrived
    | ModelUnavailable
    | ModelLoaded
    | ModelUnusable
    | InputsArrived
    | InputsUnavailable
    | BatchRan
    | BatchFailed
    | WorkerDied
    | WorkerUnwatched
    | UploadFailed
    | OutboxFilled
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a result message, in the order of the commands."""

    message: Rows | Refusal | Failure


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Get a model's file onto the disk; the answer is ModelArrived or ModelUnavailable."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class FetchInputs:
    """Get a task's inputs; the answer is InputsArrived or InputsUnavailable."""

    task: int
    ref: BlobRef


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Have the worker load a model, after it let go of others; the answer is ModelLoaded or ModelUnusable."""

    digest: str
    unload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Have the worker compute a batch; batches are answered in order by BatchRan or BatchFailed.

    `job` and `chunk` name the lease of its first row.
    """

    digest: str
    rows: int
    inputs: dict[str, Array]
    job: str
    chunk: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """End the worker at once; nothing it says afterwards counts."""


Command = Send | ByReference | FetchModel | FetchInputs | LoadModel | Run | KillWorker
