"""What a car makes of messages that did not arrive as they were sent: nothing, and a task is given back."""

import pytest

from fleet_link import Message
from fleet_wire.codec import CONTROL, TASK
from fleet_wire.errors import WireError, WireFault
from fleet_wire.messages import BlobRef, Drain, Lease, Refusal, RefusalReason, Task
from vehicle_agent.events import Drained, TaskOffered
from vehicle_agent.mailbox import Mailbox

MAILBOX = Mailbox("f", "car", 1 << 17)
OFFERED = Task("j1", 1, BlobRef("0" * 64, 1, "/m"), 9, 1, [Lease(0, 0, 4)])


def message(channel: str, payload: bytes, content_type: str, *, intact: bool) -> Message:
    answer_to = "iw/v1/f/job/j1/res/car"
    return Message(f"iw/v1/f/veh/car/{channel}", payload, 1, False, content_type, answer_to, None, [], 1, intact=intact)


def test_what_arrives_intact_is_read() -> None:
    task = MAILBOX.read(message("task", TASK.encode(OFFERED), TASK.content_type, intact=True))
    assert isinstance(task, TaskOffered)
    assert task.task == OFFERED
    assert isinstance(MAILBOX.read(message("ctl", CONTROL.encode(Drain()), CONTROL.content_type, intact=True)), Drained)


def test_a_task_that_was_changed_on_its_way_is_given_back_and_an_order_is_not_obeyed() -> None:
    task = message("task", TASK.encode(OFFERED), TASK.content_type, intact=False)
    order = message("ctl", CONTROL.encode(Drain()), CONTROL.content_type, intact=False)
    for changed, answer in (
        (task, Refusal("j1", 0, RefusalReason.MALFORMED, detail=f"{len(task.payload)} bytes")),
        (order, None),
    ):
        with pytest.raises(WireError) as caught:
            MAILBOX.read(changed)
        assert caught.value.fault is WireFault.CORRUPT
        assert MAILBOX.refusal_of(changed, caught.value) == answer
