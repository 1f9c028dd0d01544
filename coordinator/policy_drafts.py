"""Owners' policies as people write them: checked before they become a version. Never keeps and never publishes one."""

from pathlib import Path

import msgspec

from coordinator.errors import Rejected
from coordinator.local_time import find_timezone
from fleet_wire.api import PolicyDraft
from fleet_wire.policy import OwnerPolicy, policy_faults

__all__ = ["checked_policy", "read_fleet_policy"]


def checked_policy(draft: PolicyDraft, version: int) -> OwnerPolicy:
    """The draft as this version. Raises Rejected when it contradicts itself or names an unknown timezone."""
    policy = draft.as_version(version)
    faults = policy_faults(policy)
    if find_timezone(policy.timezone) is None:
        faults.append(f"{policy.timezone!r} is no timezone that is known here: IANA names are like Europe/Oslo")
    if faults:
        raise Rejected("policy_contradicts", f"this policy cannot hold: {'; '.join(faults)}")
    return policy


def read_fleet_policy(path: Path) -> OwnerPolicy:
    """The policy that holds for every vehicle without one of its own, from a JSON file. Raises Rejected."""
    try:
        return checked_policy(msgspec.json.decode(path.read_bytes(), type=PolicyDraft), 1)
    except OSError as error:
        raise Rejected("fleet_policy_missing", f"fleet policy {path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected("fleet_policy_malformed", f"fleet policy {path}: {error}") from None
    except Rejected as error:
        raise Rejected(error.code, f"fleet policy {path}: {error.detail}") from None
