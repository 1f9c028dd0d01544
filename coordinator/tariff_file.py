"""Reads the operator's tariff file: a TariffDocument in JSON, or one price series in CSV. Never decides on prices."""

from pathlib import Path

import msgspec

from coordinator.errors import BadTariff
from coordinator.rules.tariff import (
    SeriesTariff,
    TariffDocument,
    Tariffs,
    compiled,
    csv_points,
    series_tariffs,
    zone_named,
)

__all__ = ["read_tariffs"]


def read_tariffs(path: Path, timezone: str) -> Tariffs:
    """The tariffs of a file, with the fleet's `timezone` where it names none. Raises BadTariff, in one line."""
    try:
        text = _text(path)
        if path.suffix == ".csv":
            return series_tariffs(csv_points(text))
        document = msgspec.json.decode(text, type=TariffDocument)
        tariffs = {name: _with_points(name, tariff, path.parent) for name, tariff in document.tariffs.items()}
        return compiled(msgspec.structs.replace(document, tariffs=tariffs), zone_named(timezone))
    except msgspec.MsgspecError as error:
        raise BadTariff(f"{path}: {error}") from None
    except BadTariff as fault:
        raise BadTariff(f"{path}: {fault.detail}") from None


def _with_points(name: str, tariff: object, folder: Path) -> object:
    if not isinstance(tariff, SeriesTariff) or tariff.csv is None:
        return tariff
    if tariff.points:
        raise BadTariff(f"tariff {name!r} has points and names a CSV file as well: give one of them")
    try:
        return SeriesTariff(csv_points(_text(folder / tariff.csv)))
    except BadTariff as fault:
        raise BadTariff(f"tariff {name!r}, {tariff.csv}: {fault.detail}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadTariff(f"it cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadTariff("it is not UTF-8 text") from None
