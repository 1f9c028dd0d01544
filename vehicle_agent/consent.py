"""The owner's policy that a car holds, on its disk, and which documents may replace it. Applies none of its rules.

What can't be read back counts as no policy: the car then does no work until the coordinator sends one again.
"""

import logging
from collections import Counter
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from fleet_wire.codec import POLICY
from fleet_wire.errors import WireError
from fleet_wire.policy import OwnerPolicy, policy_faults
from vehicle_agent.disk import write_whole

__all__ = ["Consent", "faults_of", "utc_offset_ms"]

_log = logging.getLogger(__name__)


class Consent:
    """The document that holds, None without one."""

    def __init__(self, path: Path, policy: OwnerPolicy | None, counters: Counter[str]) -> None:
        self.policy = policy
        self._path = path
        self._counters = counters

    @classmethod
    def open(cls, path: Path, counters: Counter[str]) -> "Consent":
        """Read the document back."""
        try:
            policy = POLICY.decode(path.read_bytes(), POLICY.content_type)
        except FileNotFoundError:
            return cls(path, None, counters)
        except WireError:
            policy = None
        if policy is None or faults_of(policy):
            counters["policy_unreadable"] += 1
            policy = None
        return cls(path, policy, counters)

    @property
    def version(self) -> int:
        """Of the document, 0 without one."""
        return 0 if self.policy is None else self.policy.version

    def take(self, offered: OwnerPolicy | None) -> bool:
        """Hold another document from now on, None for none any more; return whether it does. `save` is to follow.

        One that is older than what is held, or that can't be applied, changes nothing and is counted.
        """
        if offered == self.policy:
            return False
        if offered is not None and offered.version <= self.version:
            self._counters["policy_outdated"] += 1
            return False
        if offered is not None and (faults := faults_of(offered)):
            self._counters["policy_refused"] += 1
            _log.warning("%s can't be applied: %s", self._path, "; ".join(faults))
            return False
        self.policy = offered
        return True

    def save(self) -> None:
        """Have what is held on the disk; apart from `take`, so that work which it ends need not wait for the disk."""
        if self.policy is None:
            self._path.unlink(missing_ok=True)
        else:
            write_whole(self._path, POLICY.encode(self.policy))


def faults_of(policy: OwnerPolicy) -> list[str]:
    """Say why a document can't be applied, a line each: it contradicts itself, or its time zone is not known here."""
    faults = policy_faults(policy)
    try:
        utc_offset_ms(policy, 0)
    except (KeyError, ValueError, OSError):  # what zoneinfo raises for names that are none, and for folders
        faults.append(f"nothing is known of the time zone {policy.timezone!r}")
    return faults


def utc_offset_ms(policy: OwnerPolicy, now_ms: int) -> int:
    """What the policy's time zone is ahead of UTC at this moment."""
    offset = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(policy.timezone)).utcoffset()
    assert offset is not None
    return round(offset.total_seconds() * 1000)
