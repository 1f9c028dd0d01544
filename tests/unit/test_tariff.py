"""Tariffs: prices by region and time, and every hole in a tariff file named in one line before anything is promised."""

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hypothesis import given

from coordinator.core import Core, CorePolicy
from coordinator.errors import BadTariff
from coordinator.events import Tick, VehicleCaps
from coordinator.rules.tariff import TariffDocument, TimeOfUseTariff, Window, compiled
from coordinator.tariff_file import read_tariffs
from fleet_wire.messages import Caps
from idlewheel.cli import main

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/tariff.schema.json").read_text(encoding="utf-8"))
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
NIGHT = {"days": DAYS, "start": "22:00", "stop": "06:00", "micro_per_kwh": 100_000}
DAY = {"days": DAYS, "start": "06:00", "stop": "22:00", "micro_per_kwh": 300_000}
SERIES = [
    ["2026-11-23T00:00:00+01:00", 80_000],
    ["2026-11-23T01:00:00+01:00", 90_000],
    ["2026-11-23T01:00:00Z", 95_000],
]


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def document(**tariff: object) -> dict[str, object]:
    return {"tariffs": {"t": tariff}, "default": "t"}


def written(folder: Path, content: object, name: str = "tariffs.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_each_region_has_its_tariff_and_the_others_the_default(tmp_path: Path) -> None:
    content = {
        "tariffs": {
            "house": {"kind": "flat", "micro_per_kwh": 250_000},
            "night": {"kind": "time_of_use", "timezone": "Europe/Oslo", "windows": [NIGHT, DAY]},
            "spot": {"kind": "series", "points": SERIES},
            "file": {"kind": "series", "csv": "spot.csv"},
        },
        "default": "house",
        "regions": {"NO1": "night", "NO2": "spot", "NO3": "file"},
    }
    jsonschema.validate(content, SCHEMA)
    written(tmp_path, "time,micro_per_kwh\n2026-11-23T00:00Z,1\n2026-11-23T00:15Z,2\n", "spot.csv")
    tariffs = read_tariffs(written(tmp_path, content), "UTC")
    for time, *prices in (
        ("2026-11-23T00:10:00+00:00", 250_000, 100_000, 90_000, 1),
        ("2026-11-23T05:00:00+00:00", 250_000, 300_000, None, None),
        ("2026-11-23T04:59:59+00:00", 250_000, 100_000, None, None),
    ):
        assert [tariffs.price(region, ms(time)) for region in ("elsewhere", "NO1", "NO2", "NO3")] == prices


def test_a_series_is_known_from_its_first_point_until_its_last_price_ends(tmp_path: Path) -> None:
    tariffs = read_tariffs(written(tmp_path, document(kind="series", points=SERIES)), "UTC")
    hour = 3_600_000
    start = ms("2026-11-22T23:00:00Z")
    prices = [tariffs.price("", start + moment) for moment in (-1, 0, hour, 2 * hour, 3 * hour - 1, 3 * hour)]
    assert prices == [None, 80_000, 90_000, 95_000, 95_000, None]
    assert tariffs.default.known_until_ms == start + 3 * hour


def test_the_local_week_follows_summer_time() -> None:
    zone = ZoneInfo("Europe/Oslo")
    tariffs = compiled(
        TariffDocument({"t": TimeOfUseTariff([Window(["sun"], "00:00", "03:00", 1), Window(["sun"], "03:00", "24:00", 2)
        , *(Window([day], "00:00", "24:00", 3) for day in DAYS[:6])])}, "t"), zone)  # fmt: skip
    before, after = ms("2026-03-29T00:59:59Z"), ms("2026-03-29T01:00:00Z")  # 02:00 becomes 03:00
    assert [tariffs.price("", time_ms) for time_ms in (before, after)] == [1, 2]


def test_the_hour_that_comes_twice_has_its_price_twice_and_the_one_that_never_comes_has_none() -> None:
    zone = ZoneInfo("Europe/Berlin")
    clocks = [f"{hour:02}:00" for hour in range(24)]
    windows = [Window(DAYS, start, stop, hour) for hour, (start, stop) in enumerate(pairwise([*clocks, "24:00"]))]
    tariffs = compiled(TariffDocument({"t": TimeOfUseTariff(windows)}, "t"), zone)

    def night(midnight: str) -> list[int | None]:
        """The price of every half hour from midnight on."""
        return [tariffs.price("", ms(midnight) + half * 1_800_000) for half in range(10)]

    assert night("2026-10-25T00:00+02:00") == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert night("2026-03-29T00:00+01:00") == [0, 0, 1, 1, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    "times",
    [
        ["2026-10-25T01:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"],
        ["2026-03-29T00:00+01:00", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", "2026-03-29T04:00+02:00"],
    ],
)
def test_a_series_goes_by_its_offsets_through_the_change_of_the_clocks(times: list[str], tmp_path: Path) -> None:
    lines = [f"{time},{price}" for price, time in enumerate(times)]
    tariffs = read_tariffs(written(tmp_path, "\n".join([CSV_HEAD.strip(), *lines]), "spot.csv"), "Europe/Berlin")
    assert [tariffs.price("", ms(times[0]) + hour * 3_600_000) for hour in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("head", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_series_as_a_spreadsheet_writes_it(head: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "spot.csv"
    text = end.join([head + "time,micro_per_kwh", "2026-11-23T00:00Z,1", '"2026-11-23T01:00Z"," 2"', ""])
    path.write_bytes(text.encode())
    tariffs = read_tariffs(path, "UTC")
    assert [tariffs.price("", ms(f"2026-11-23T0{hour}:00Z")) for hour in (0, 1, 2)] == [1, 2, None]


@given(
    cuts=st.sets(st.integers(1, 1439), max_size=5),
    shift=st.integers(0, 1439),
    moment=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - hypothesis adds the zone
)
def test_windows_that_share_out_the_day_price_every_minute(cuts: set[int], shift: int, moment: datetime) -> None:
    clocks = [(cut + shift) % 1440 for cut in sorted({0, *cuts})]
    windows = [
        Window(DAYS, f"{start // 60:02}:{start % 60:02}", f"{stop // 60:02}:{stop % 60:02}", start)  # type: ignore[arg-type]
        for start, stop in zip(clocks, [*clocks[1:], clocks[0]], strict=True)
    ]
    tariffs = compiled(TariffDocument({"t": TimeOfUseTariff(windows)}, "t"), ZoneInfo("UTC"))
    time = moment.replace(tzinfo=UTC)
    minute = time.hour * 60 + time.minute
    expected = min(clocks, key=lambda start: (minute - start) % 1440)
    assert tariffs.price("", round(time.timestamp() * 1000)) == expected


CSV_HEAD = "time,micro_per_kwh\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (document(kind="flat", micro_per_kwh=-1), "tariff 't': -1 micro-units a kWh always is below zero"),
        (document(kind="flat", micro_per_kwh=0.25), "Expected `int`"),
        (document(kind="flat", micro_per_kw=1), "unknown field `micro_per_kw`"),
        (document(kind="auction"), "Invalid value 'auction'"),
        ({"tariffs": {"t": {"kind": "flat", "micro_per_kwh": 1}}, "default": "u"}, "default is to have tariff 'u'"),
        (
            {"tariffs": {"t": {"kind": "flat", "micro_per_kwh": 1}}, "default": "t", "regions": {"NO1": "u"}},
            "region 'NO1' is to have tariff 'u', and there is none",
        ),
        (document(kind="time_of_use", windows=[DAY]), "no window has a price from mon 00:00 until mon 06:00"),
        (
            document(kind="time_of_use", windows=[DAY, NIGHT | {"days": DAYS[:6]}]),
            "no window has a price from mon 00:00 until mon 06:00",
        ),
        (
            document(kind="time_of_use", windows=[DAY, NIGHT | {"stop": "07:00"}]),
            "two windows have a price from mon 06:00 on",
        ),
        (document(kind="time_of_use", windows=[DAY, NIGHT | {"stop": "6:00"}]), "matching regex"),
        (document(kind="time_of_use", windows=[DAY, NIGHT], timezone="Mars/Olympus"), "'Mars/Olympus' is no timezone"),
        (document(kind="time_of_use", windows=[DAY, NIGHT | {"micro_per_kwh": -5}]), "-5 micro-units a kWh from 22:00"),
        (document(kind="series", points=SERIES[:1]), "at least two points"),
        (
            document(kind="series", points=[*SERIES, ["2026-11-23T04:00:00Z", 1]]),
            "no price is given from 2026-11-23 02:00 UTC until 2026-11-23 04:00 UTC",
        ),
        (
            document(kind="series", points=[*SERIES, ["2026-11-23T01:30:00Z", 1]]),
            "2026-11-23 01:30 UTC comes before the price of 2026-11-23 01:00 UTC has ended",
        ),
        (document(kind="series", points=[*SERIES, SERIES[0]]), "times must rise, and come once"),
        (document(kind="series", points=[["2026-11-23T00:00:00", 1]]), "timezone"),
        (document(kind="series", points=SERIES, csv="spot.csv"), "give one of them"),
        (document(kind="series", csv="nowhere.csv"), "nowhere.csv: it cannot be read: No such file"),
        ("{", "truncated"),
        ("[]", "Expected `object`"),
    ],
)
def test_a_document_with_a_hole_is_refused_in_one_line(content: object, fault: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BadTariff) as refusal:
        read_tariffs(path, "UTC")
    assert fault in str(refusal.value)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the first line must be time,micro_per_kwh"),
        ("when,price\n", "and is 'when,price'"),
        (CSV_HEAD, "at least two points"),
        (CSV_HEAD + "2026-11-23T00:00Z\n", "line 2 is '2026-11-23T00:00Z'"),
        (CSV_HEAD + "2026-11-23T00:00Z,1\n2026-11-23T01:00Z,0.2\n", "line 3"),
        (CSV_HEAD + "2026-11-23T00:00,1\n", "does not say its offset from UTC"),
        (CSV_HEAD + "2026-11-23T00:00Z,EUR 1\n", "line 2"),
        (CSV_HEAD + "2026-11-23T00:00Z,1_000\n", "line 2"),
        (CSV_HEAD + "2026-11-23T00:00Z,\u0661\n", "line 2"),
        (CSV_HEAD + "2026-11-23T00:00Z,1e3\n", "line 2"),
        (CSV_HEAD + "2026-11-23T00:00Z;1\n", "line 2"),
        (CSV_HEAD + "2026-11-23T00:00Z,1\n" + "x" * 200_000 + ",1\n", "line 3"),
        (CSV_HEAD + "2026-11-23T00:00Z," + "9" * 6_000 + "\n", "line 2"),
        (CSV_HEAD + "0001-01-01T00:00+14:00,1\n0001-01-01T01:00+14:00,2\n", "outside of the years"),
        (CSV_HEAD + "9999-12-31T22:00-14:00,1\n9999-12-31T23:00-14:00,2\n", "outside of the years"),
        (CSV_HEAD + "2026-11-23T00:00Z,1\n2026-11-23T01:00Z,-2\n", "-2 micro-units a kWh from 2026-11-23 01:00 UTC"),
        (CSV_HEAD + "2026-11-23T00:00Z,99999999999\n", "more than a thousand"),
        (CSV_HEAD + "".join(f"2026-11-23T0{hour}:00Z,5\n" for hour in (0, 1, 2, 4)), "no price is given from"),
    ],
)
def test_a_series_file_with_a_hole_is_refused_in_one_line(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadTariff) as refusal:
        read_tariffs(written(tmp_path, text, "spot.csv"), "UTC")
    assert fault in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300 + len(str(tmp_path))


def test_prices_below_zero_are_taken_where_they_are_meant(tmp_path: Path) -> None:
    content = document(kind="flat", micro_per_kwh=-1) | {"allow_negative": True}
    assert read_tariffs(written(tmp_path, content), "UTC").price("", 0) == -1


def caps(region: str) -> Caps:
    return Caps(1, "1", "x86_64", "CPUExecutionProvider", "1.20", 1, 1, region=region)


def test_the_fleets_prices_follow_the_clock_and_are_unknown_after_the_end(tmp_path: Path) -> None:
    content = document(kind="series", points=SERIES) | {"regions": {"home": "f"}}
    content["tariffs"]["f"] = {"kind": "flat", "micro_per_kwh": 7}  # type: ignore[index]
    core = Core(CorePolicy(tariffs=read_tariffs(written(tmp_path, content), "UTC")))
    start, hour = ms("2026-11-22T23:00:00Z"), 3_600_000
    core.handle(VehicleCaps("spot", caps("NO2")), start)
    core.handle(VehicleCaps("home", caps("home")), start)
    prices = core.fleet.live("energy_micro_per_kwh")
    assert prices.tolist() == [80_000, 7]
    core.handle(Tick(), start + hour)
    assert prices.tolist() == [90_000, 7]
    assert core.counters["region_price_unknown"] == 0
    core.handle(Tick(), start + 3 * hour)
    np.testing.assert_equal(prices, [np.nan, 7])
    assert core.counters["region_price_unknown"] == 2  # of the region and of cars that named none yet
    core.handle(Tick(), start + 4 * hour)
    assert core.counters["region_price_unknown"] == 2
    core.handle(Tick(), start)  # the clock was set back
    assert prices.tolist() == [80_000, 7]


def test_an_operator_may_check_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["tariff", "check", str(written(tmp_path, document(kind="flat", micro_per_kwh=250_000)))])
    assert (left.value.code or 0, capsys.readouterr().out) == (0, "everywhere: 250,000 micro-units a kWh now\n")
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    points = [[(now + timedelta(hours=offset)).isoformat(), 5] for offset in (-3, -2)]
    content = document(kind="flat", micro_per_kwh=1) | {"regions": {"NO2": "s"}}
    content["tariffs"]["s"] = {"kind": "series", "points": points}  # type: ignore[index]
    with pytest.raises(SystemExit):
        main(["tariff", "check", str(written(tmp_path, content))])
    ended = (now - timedelta(hours=1)).strftime("%Y-%m-%d %H:%M UTC")
    assert capsys.readouterr().out == (
        f"everywhere else: 1 micro-units a kWh now\nNO2: the price is not known now, known until {ended}\n"
    )


def test_a_bad_file_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["tariff", "check", str(tmp_path / "nowhere.json")])
    assert left.value.code == 2
    assert (
        capsys.readouterr().err == f"idlewheel: {tmp_path}/nowhere.json: it cannot be read: No such file or directory\n"
    )
