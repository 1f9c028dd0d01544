"""What a coordinator refuses to start with: one line that says what is wrong, and nothing touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_ledger_that_is_damaged_is_named_with_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 8176)
    environment = {"IDLEWHEEL_COORDINATOR_DATA": str(data), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.daemon"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"coordinator: the ledger {data}/ledger.sqlite is damaged")
    assert "restore it from a backup" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"TARIFF_FILE": "nowhere.json"}, "nowhere.json: it cannot be read: No such file or directory"),
        ({"TARIFF_FILE": "gap.csv"}, "gap.csv: the series: no price is given from 2026-11-23 03:00 UTC until "),
        ({"FLEET": "a/b"}, "IDLEWHEEL_COORDINATOR_FLEET: String should match pattern"),
        ({"TIMEZONE": "Mars/Olympus"}, "'Mars/Olympus' is no timezone: give an IANA name, such as Europe/Oslo"),
    ],
)
def test_settings_that_cannot_be_relied_on(settings: dict[str, str], fault: str, tmp_path: Path) -> None:
    hours = "".join(f"2026-11-23T{hour:02}:00Z,5\n" for hour in (0, 1, 2, 5))
    (tmp_path / "gap.csv").write_text(f"time,micro_per_kwh\n{hours}", encoding="utf-8")
    data = tmp_path / "data"
    environment = {f"IDLEWHEEL_COORDINATOR_{name}": value for name, value in {"DATA": str(data), **settings}.items()}
    done = subprocess.run(
        [sys.executable, "-m", "coordinator.daemon"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"coordinator: {fault}")
    assert done.stderr.count("\n") == 1
    assert not data.exists()
