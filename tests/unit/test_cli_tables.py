"""Tables of the command line: short where there is little room, and a sentence where there is nothing to show."""

import pytest
from msgspec.structs import replace

from fleet_wire.api import JobView, VehicleView
from idlewheel.cli_tables import print_jobs, print_receipts, print_statement, print_vehicles
from idlewheel.words import job_note, why_job, why_vehicle

JOB = JobView(
    id="0123456789ab",
    name="night-batch",
    model="",
    state="running",
    rows=20_000,
    rows_done=12_000,
    rows_leased=0,
    created_ms=1_700_000_000_000,
    ended_ms=None,
    error=None,
    rows_duplicate=0,
    rows_released_again=0,
    compute_ms=0.0,
    energy_mwh=40_562,
    pay_micro=13_199,
    vehicles=8,
    waiting_for="no car may work for it: 2 job_price_ceiling",
)
CAR = VehicleView(
    id="car-01",
    online=True,
    eligible=False,
    reason="charge_too_low: its charge is below the owner's floor",
    plugged=True,
    charging=True,
    charge_percent=31.4,
    leases=0,
    rows_per_s=28.74,
    rows_done=3_000,
    energy_mwh=1,
    pay_micro=531,
    last_seen_ms=None,
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, without colours."""
    for name, value in {"TTY_COMPATIBLE": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)


def test_in_a_pipe_nothing_is_left_out_or_padded(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([JOB])
    print_vehicles([CAR, replace(CAR, eligible=True, reason=None)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:1]] == [
        ["JOB", "NAME", "STATE", "ROWS", "DONE", "CARS", "ENERGY", "Wh", "PAY", "BEGAN", "NOTE"]
    ]
    assert "40.562  0.013199" in lines[1]
    assert lines[1].endswith("no car may work for it: 2 job_price_ceiling")
    assert lines[3].endswith("0.000531      0  charge_too_low: its charge is below the owner's floor")
    assert [line for line in lines if line != line.rstrip()] == []


def test_verified_jobs_and_convicted_cars_show(capsys: pytest.CaptureFixture[str]) -> None:
    verified = replace(JOB, waiting_for=None, verification="quorum 3", rows_held=12, rows_retracted=3)
    convicted = replace(CAR, reason=None, trust=7, convictions=2)
    print_jobs([verified])
    print_vehicles([convicted])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("quorum 3, 12 held, 3 taken back")
    assert lines[3].endswith("0.000531  7, 2 x convicted")
    assert "12 are held for checks" in why_job(verified)
    done = replace(verified, state="done", rows_held=0, rows_checked=400)
    assert why_job(done).endswith("by 8 cars, verified (quorum 3, 400 checked, 3 taken back)")
    assert why_vehicle(convicted).endswith(
        "it was convicted of wrong rows 2 times, and since then 7 rows of its came out right"
    )
    assert why_vehicle(replace(CAR, trust=1)).endswith("1 checked row of its came out right, and none wrong")


@pytest.mark.usefixtures("terminal")
def test_eighty_columns_hold_ids_states_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([JOB])
    print_vehicles([CAR])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "ENERGY" not in lines[0]
    assert lines[1].startswith("0123456789ab  ")
    assert lines[-1].split() == ["car-01", "yes", "no", "31", "0", "28.7", "3000", "charge_too_low"]


def test_where_there_is_nothing_a_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([])
    print_vehicles([])
    print_statement("owner", [])
    print_receipts([])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "no job yet",
        "no car yet",
        *["nothing is on record for this"] * 2,
    ]


def test_a_job_that_will_be_late_is_named() -> None:
    assert job_note(JOB) == "no car may work for it: 2 job_price_ceiling"
    late = replace(JOB, waiting_for=None, estimate_s=190.0, deadline_in_s=10.0)
    assert job_note(late) == "will miss its deadline by 3 min"
    assert job_note(replace(late, deadline_in_s=190.0)) == ""
    assert job_note(replace(late, estimate_s=None)) == ""
    assert job_note(replace(JOB, waiting_for=None, state="failed", error="no")) == "no"
