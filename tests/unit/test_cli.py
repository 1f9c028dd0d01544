"""The command line without a coordinator: help, exit codes and one line for every mistake."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from idlewheel.cli import main

COMMANDS = ["submit", "result", "jobs", "vehicles", "why", "cancel", "status", "agent", "demo", "up"]
NOBODY = "http://127.0.0.1:9"  # the discard port, where nothing listens


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"Example:\n    idlewheel {command}" in capsys.readouterr().out


def test_help_needs_nothing_heavy() -> None:
    program = "import sys; from idlewheel.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print(sorted({'httpx', 'numpy', 'rich.console', 'onnx', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_client_needs_no_package_of_the_coordinator() -> None:
    program = "import sys; import idlewheel.client, idlewheel.cli_tables, idlewheel.words\n"
    program += "print(sorted({'coordinator', 'starlette', 'uvicorn', 'obstore', 'onnx', 'duckdb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [["jobs"], ["vehicles", "--json"], ["status"], ["why", "car-1"], ["cancel", "job-1"]],
)
def test_no_coordinator_ends_with_3(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments, "--url", NOBODY) == 3
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert NOBODY in said.err
    assert "idlewheel up" in said.err


def test_the_address_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IDLEWHEEL_URL", NOBODY)
    assert run("jobs") == 3
    assert NOBODY in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "MODEL", "ROWS"], "-o out.npz"),
        (["submit", "MODEL", "ROWS", "-o", "out.npz", "--no-wait"], "give one of them"),
        (["submit", "MODEL", "ROWS", "-o", "out.csv"], "must end in .npz"),
        (["submit", "MODEL", "ROWS", "-o", "no/such/folder/out.npz"], "no folder"),
        (["submit", "MODEL", "nothing.npz", "--no-wait"], "nothing.npz cannot be read"),
        (["submit", "MODEL", "MODEL", "--no-wait"], "neither a .npy nor a .npz"),
        (["submit", "nothing.onnx", "ROWS", "--no-wait"], "nothing.onnx cannot be read"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--chunk-rows", "0"], "chunk_rows"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--purpose", "Night Work"], "`purpose` is up to 32 lower-case"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--price-ceiling", "-0.1"], "price ceiling must be 0 or more"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--price-ceiling", "nan"], "nan is not an amount"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--vehicle-share", "0"], "`vehicle_share` is above 0"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--vehicle-share", "nan"], "`vehicle_share` is above 0"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--verify", "quorum"], "'quorum' is no rule of verification"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--tolerance", "y=1"], "give OUTPUT=ABSOLUTE:RELATIVE"),
        (["submit", "MODEL", "ROWS", "--no-wait", "--max-attempts", "0"], "`max_attempts` is 1 to 100"),
        (["owner", "policy", "set", "car-1", "--price-ceiling", "inf"], "inf is not an amount"),
        (["owner", "policy", "set", "car-1", "--least-pay", "nan"], "nan is not an amount"),
        (["owner", "policy", "set", "car-1", "--purpose", "A B"], "up to 32 lower-case letters"),
        (["owner", "policy", "set", "car-1", "--departure-charge", "101"], "101 is not an amount from 0 to 100"),
        (["owner", "policy", "set", "car-1", "--month-mb", "-1"], "-1 is not an amount"),
        (["owner", "policy", "set", "car-1", "--threads", "1.5"], "1.5 is not a whole number"),
        (["why"], "name one car"),
        (["why", "car-1", "--job", "job-1"], "name one car"),
        (["jobs", "--url", "nonsense"], "no address"),
        (["up", "--data", "MODEL"], "MODEL cannot be a folder: File exists"),
        (["agent", "--vehicle", "a", "--simulated", "--data", "MODEL"], "MODEL cannot be a folder: File exists"),
        (["agent", "--vehicle", "a/b", "--simulated"], "vehicle: String should match pattern"),
        (["agent", "--vehicle", "a", "--trace", "nothing.csv"], "No such file"),
        (["agent", "--vehicle", "a", "--simulated", "--signals", "car.sock"], "say one of --trace FILE, --signals"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IDLEWHEEL_URL", NOBODY)
    Path("MODEL").write_bytes(b"onnx")
    with Path("ROWS").open("wb") as file:
        np.save(file, np.zeros((2, 2)))
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("idlewheel: ")
    assert words in said.err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"idlewheel {version('idlewheel')}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["submit"], ["jobs", "--nonsense"], ["submit", "a", "b", "--priority", "x"]]
)
def test_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Error" in capsys.readouterr().err
