"""What a test does that needs a server or a tool which is not installed."""

import os
from typing import TypeVar

import pytest

__all__ = ["required"]

T = TypeVar("T")


def required(found: T | None, reason: str, *, fails_in_ci: bool = True) -> T:
    """Return what was found. Where it is missing, skip; under CI, fail, unless it may be missing there."""
    if found is not None:
        return found
    if os.environ.get("CI") and fails_in_ci:
        pytest.fail(reason)
    pytest.skip(reason)
