"""The evaluation of the availability model: its contract, on small and odd tables."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from benchmarks import availability
from benchmarks.availability import MINUTES, Looks, _baselines, _play_fold, main, play
from benchmarks.charging_sessions import read_table

HEAD = "session_id,site,user_id,plugin_local,plugout_local,connection_h,energy_kwh,flag"


def write(path: Path, rows: list[tuple[str, str, str, str, str]]) -> Path:
    lines = [HEAD, *(f"{n},S,{u},{start},{stop},{h},5,{flag}" for n, (u, start, stop, h, flag) in enumerate(rows))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def regular(users: int, days: int) -> list[tuple[str, str, str, str, str]]:
    """Each user leaves at an hour of their own, give or take ten minutes."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(users):
        for day in range(days):
            begin = datetime(2019, 1, 7, 17, tzinfo=UTC) + timedelta(days=day, minutes=int(rng.integers(60)))
            end = datetime(2019, 1, 8, 5 + user % 6, tzinfo=UTC) + timedelta(days=day, minutes=int(rng.integers(20)))
            rows.append((f"u{user}", f"{begin:%FT%T}", f"{end:%FT%T}", "1", "ok"))
    return rows


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times fewer than a benchmark of so few cars takes."""
    monkeypatch.setattr(availability, "_STEPS", (23,))


def test_the_model_beats_both_baselines_on_users_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out, plot = write(tmp_path / "s.csv.gz", regular(6, 16)), tmp_path / "out.json", tmp_path / "out.svg"
    assert main(["--sessions", str(file), "--json", str(out), "--plot", str(plot)]) == 0
    figures = json.loads(out.read_text())
    for score in ("brier", "log_loss"):
        assert figures[score]["model"] < min(figures[score]["fleet_mean"], figures[score]["none"])
    assert set(figures["on_time"]) == set(figures["lost"]) == {str(minutes) for minutes in MINUTES}
    assert all(0 <= value <= 1 for value in (*figures["on_time"].values(), *figures["lost"].values()))
    assert figures["on_time"]["60"] >= figures["beside"]["none"]["60"]["on_time"]
    assert (figures["users"], figures["sessions"]) == (6, 96)
    assert set(figures["apart"]) == {"weekday_07"}  # no July in it
    assert "| 60 min |" in capsys.readouterr().out
    assert plot.read_text().startswith("<svg")


@pytest.mark.usefixtures("few_looks")
@pytest.mark.parametrize("day", [9, 21])
def test_nothing_foreseen_changes_with_what_is_to_come(tmp_path: Path, day: int) -> None:
    """Two tables that are the same until a moment, in the middle of a night and of a month, or at a month's end."""
    cut = datetime(2019, 1, 7, 5, 40, tzinfo=UTC) + timedelta(days=day)
    rows = regular(4, day + 5)

    def told(name: str, change_hours: int) -> Looks:
        changed = []
        for user, start, stop, hours, flag in rows:
            begin, end = (datetime.fromisoformat(f"{text}+00:00") for text in (start, stop))
            if begin >= cut:  # later plug-ins go, or last for three days at a time
                if change_hours and begin.day % 3 == 0:
                    changed.append((user, start, f"{end + timedelta(hours=change_hours):%FT%T}", hours, flag))
            elif end >= cut and change_hours:  # leaves at once
                changed.append((user, start, f"{cut + timedelta(minutes=1):%FT%T}", hours, flag))
            else:
                changed.append((user, start, stop, hours, flag))
        return play(read_table(write(tmp_path / name, changed)).cars)

    parts = []
    for looks in (told("a.csv.gz", 0), told("b.csv.gz", 40)):
        before = looks.at_ms <= cut.timestamp() * 1000
        stayed = np.stack([looks.left_min >= minutes for minutes in MINUTES])
        chances = {"model": looks.online, "frozen": looks.month_before, **_baselines(looks, stayed, looks.at_ms)}
        parts.append(
            (looks.fold[before], looks.at_ms[before], {name: each[:, before] for name, each in chances.items()})
        )
    (fold, at_ms, ours), (other_fold, other_ms, others) = parts
    np.testing.assert_array_equal(fold, other_fold)
    np.testing.assert_array_equal(at_ms, other_ms)
    assert len(at_ms) > 500
    for name, chances in ours.items():
        np.testing.assert_array_equal(chances, others[name], err_msg=name)


def test_what_held_out_users_do_says_nothing_of_each_other(tmp_path: Path) -> None:
    """The first two users are held out together; the last is always there, so that there is always a look."""
    nights = [(row[0], row) for row in regular(4, 25)]
    always = ("u9", "2019-01-07T12:00:00", "2019-02-05T12:00:00", "696", "ok")
    folds = np.array([0, 0, 1, 1, 1])

    def asked(name: str, rows: list[tuple[str, str, str, str, str]]) -> dict[tuple[int, float], list[float]]:
        cars = read_table(write(tmp_path / name, [*rows, always])).cars
        assert [car.user for car in cars] == ["u0", "u1", "u2", "u3", "u9"]
        found = {}
        for _, at_ms, left_min, online, frozen in _play_fold(cars, folds, 23, 0):
            for place, left in enumerate(left_min.tolist()):
                found[int(at_ms[place]), left] = [*online[:, place].tolist(), *frozen[:, place].tolist()]
        return found

    whole = asked("a.csv.gz", [row for _, row in nights])
    hardly_there = asked("b.csv.gz", [row for user, row in nights if user != "u0" or row[1] >= "2019-01-31"])
    taught_more = asked("c.csv.gz", [row for user, row in nights if user != "u2" or row[1] >= "2019-01-31"])
    before_ms = datetime(2019, 1, 31, tzinfo=UTC).timestamp() * 1000
    same = [key for key in hardly_there if key[0] < before_ms]
    assert len(same) > 300
    assert [whole[key] for key in same] == [hardly_there[key] for key in same]
    assert any(whole[key] != taught_more[key] for key in same)  # the others do teach


def test_one_user_and_one_session_are_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "s.csv.gz", [("u", "2019-07-01T18:00", "2019-07-02T07:30", "13.5", "ok")])
    out = tmp_path / "out.json"
    assert main(["--sessions", str(file), "--json", str(out)]) == 0
    assert set(json.loads(out.read_text())["brier"]) == {"model", "fleet_mean", "none"}


def test_known_faults_of_the_table_are_handled(tmp_path: Path) -> None:
    rows = [
        ("u", "2019-10-26T17:00:00", "2019-10-27T07:00:00", "15.0", "clock_step"),
        ("u", "2019-10-28T17:00:00", "", "", "no_plugout"),
        ("u", "2019-10-28T17:00:00", "2019-10-28T19:00:00", "2", "ok"),
        ("u", "2019-10-28T18:59:00", "2019-10-28T21:00:00", "2", "ok"),  # a clock a minute off
        ("u", "2019-10-28T20:00:00", "2019-10-28T23:00:00", "3", "ok"),  # a second car
        ("u", "2019-10-28T20:00:00", "2019-10-28T23:00:00", "3", "ok"),
        ("u", "2019-10-29T20:00:00", "2019-10-29T19:00:00", "3", "ok"),
        ("u", "yesterday", "2019-10-29T19:00:00", "3", "ok"),
        ("u", "2019-10-27T17:00:00", "2019-10-27T17:30:00", "", "clock_step"),
        ("", "2019-10-27T17:00:00", "2019-10-27T17:30:00", "", "ok"),
    ]
    table = read_table(write(tmp_path / "s.csv.gz", rows))
    assert table.first_unreadable == "line 9: plugin_local is 'yesterday'"
    assert table.left_out == {"no_plugout": 1, "twice": 1, "impossible": 1, "unreadable": 2, "no_user": 1}
    hours = [[(stop - start) / 3_600_000 for start, stop in car.spans] for car in table.cars]
    assert hours == [[15, 2, 2], [3]]
    assert table.used == 4


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("absent.csv", None, "No such file"),
        ("empty.csv", b"", "user_id, plugin_local, plugout_local"),
        ("other.csv", b"a,b\n1,2\n", "user_id, plugin_local, plugout_local"),
        ("half.csv", b"user_id,plugin_local\n1,2\n", "plugout_local"),
        ("broken.csv.gz", gzip.compress(b"user_id,plugin_local,plugout_local\n" * 99)[:40], "end-of-stream"),
        ("binary.csv", b"\xff\xfe\x00\x80", "decode"),
        ("none.csv", HEAD.encode() + b"\n1,S,u,,,,,no_plugout\n", "no session"),
        ("head.csv", HEAD.encode() + b"\n", "no session"),
        ("words.csv", HEAD.encode() + b"\n\n1,S,u,2019-01-01T10:00,noon,2,5,ok\n", "line 3: plugout_local is 'noon'"),
        (
            "step.csv",
            HEAD.encode() + b"\n1,S,u,2019-01-01T10:00,2019-01-01T12:00,-,5,clock_step\n",
            "line 2: connection_h is '-'",
        ),
        ("short.csv", b"user,plugin_local,plugout_local\nu,2019-01-01T10:00:40,2019-01-01T10:00:50\n", "plugged in"),
    ],
)
def test_a_bad_file_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes | None, says: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert main(["--sessions", str(tmp_path / name)]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err


@pytest.mark.usefixtures("few_looks")
def test_order_of_the_rows_packing_and_columns_beside_change_nothing(tmp_path: Path) -> None:
    rows = regular(3, 8)
    figures = []
    head, *lines = gzip.decompress(write(tmp_path / "a.csv.gz", rows).read_bytes()).decode().split("\n")
    np.random.default_rng(3).shuffle(lines)
    (tmp_path / "b.csv").write_bytes("\r\n".join([head, *lines, ""]).encode("utf-8-sig"))
    bare = [",".join(line.split(",")[2:5]) for line in (head, *lines)]
    (tmp_path / "c.csv").write_text("\n".join(bare))
    for name in ("a.csv.gz", "b.csv", "c.csv"):
        assert main(["--sessions", str(tmp_path / name), "--json", str(tmp_path / "out.json")]) == 0
        figures.append(json.loads((tmp_path / "out.json").read_text()) | {"source": ""})
    assert figures[0] == figures[1] == figures[2]


def test_what_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "s.csv.gz", regular(2, 2))
    assert main(["--sessions", str(file), "--json", str(tmp_path / "no" / "out.json")]) == 2
    assert "No such file" in capsys.readouterr().err
