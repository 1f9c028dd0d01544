"""The example and the tariff file in docs/energy-and-pay.md are recomputed, so that the document can't be wrong."""

import json
import re
from pathlib import Path
from zoneinfo import ZoneInfo

import jsonschema
import msgspec

from coordinator.model import LeaseRecord, Rest
from coordinator.rules.pay import paid
from coordinator.rules.tariff import FlatTariff, TariffDocument, compiled

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "energy-and-pay.md").read_text(encoding="utf-8")


def test_the_example_adds_up() -> None:
    tariff, fee = (int(number.replace(",", "")) for number in re.findall(r"of ([\d,]+) micro-units an?", TEXT))
    first, second, receipt = (
        [int(cell.replace(",", "")) for cell in row.split("|")[2:-1]]
        for row in re.findall(r"^\| (?:first|second|\*\*receipt\*\*) \|.*$", TEXT, re.MULTILINE)
    )
    lease = LeaseRecord("j", 0, 0, 1_000, "v", 1, 0, 1, energy_micro_per_kwh=tariff, pay_micro_per_h=fee)
    rest = Rest()
    for _, compute_ms, energy_mwh, refund, earned in (first, second):
        *pay, rest = paid(energy_mwh, compute_ms * 1000, lease, rest)
        assert pay == [refund, earned]
    assert [sum(pair) for pair in zip(first, second, strict=True)] == receipt
    assert f"pays {receipt[3] + receipt[4]} micro-units: 0.{receipt[3] + receipt[4]:06}" in TEXT
    assert f"of which 0.{receipt[3]:06} is what the energy cost" in " ".join(TEXT.split())


def test_awake_time_counts_only_while_a_car_does_not_charge() -> None:
    charging, awake = 25 * 90 * 1000 // 3600, (25 + 260) * 90 * 1000 // 3600
    assert f"takes {charging:,} mWh in a car that charges and {awake:,} mWh in one that does not" in " ".join(
        TEXT.split()
    )


def test_the_tariff_file_is_one() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    jsonschema.validate(json.loads(block), json.loads((DOCS / "tariff.schema.json").read_text(encoding="utf-8")))
    document = msgspec.json.decode(block, type=TariffDocument)
    without_file = document.tariffs | {"spot": FlatTariff(1)}
    compiled(msgspec.structs.replace(document, tariffs=without_file), ZoneInfo("UTC"))
