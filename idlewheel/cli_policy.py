"""`idlewheel owner policy …`: what owners agree to for their cars: shown, set, revoked, with its history."""

import getpass
import re
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from idlewheel.cli_options import Json, Url, json_text
from idlewheel.errors import BadInput, Refused
from idlewheel.money_text import micro

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet_wire.api import PolicyView

__all__ = ["policy_app"]

policy_app = typer.Typer(
    help="What a car's owner agrees to.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

Vehicles = Annotated[list[str], typer.Argument(metavar="VEHICLE...", help="One car or several.")]


@policy_app.command()
def show(vehicles: Vehicles, as_json: Json = False, url: Url = None) -> None:
    """Show what the owners of these cars agreed to.

    \b
    Example:
      idlewheel owner policy show car-0007
    """
    from idlewheel.client import Client  # noqa: PLC0415 - slow to load

    with Client(url) as client:
        _print([client.policy(vehicle) for vehicle in vehicles], as_json=as_json)


@policy_app.command("set")
def set_(
    vehicles: Vehicles,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The whole policy as JSON, instead of options.")
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Who the owner is: an opaque name.")] = None,
    purpose: Annotated[list[str] | None, typer.Option(help="What the cars may work for; may be repeated.")] = None,
    hours: Annotated[
        list[str] | None, typer.Option(help='When, as in "Mon-Fri 22:00-06:00"; may be repeated; "always".')
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name of the timezone of the hours.")] = None,
    floor: Annotated[
        float | None, typer.Option(min=0, max=100, help="Charge in percent below which no work is done.")
    ] = None,
    departure_charge: Annotated[
        str | None, typer.Option(metavar="PERCENT|none", help="Charge promised for the next departure.")
    ] = None,
    price_ceiling: Annotated[
        str | None, typer.Option(metavar="PRICE|none", help="No work where a kWh costs more.")
    ] = None,
    least_pay: Annotated[float | None, typer.Option(help="Least fee for an hour of computing.")] = None,
    charging_only: Annotated[
        bool | None, typer.Option("--charging-only/--not-only-charging", help="Work only while charging.")
    ] = None,
    metered: Annotated[bool | None, typer.Option("--metered/--no-metered", help="Metered links may be used.")] = None,
    least_mbps: Annotated[float | None, typer.Option(min=0, help="Least speed of the link in Mbit/s.")] = None,
    month_mb: Annotated[
        str | None, typer.Option(metavar="MB|none", help="Megabytes that the link may carry a month.")
    ] = None,
    power_cap_w: Annotated[
        str | None, typer.Option(metavar="WATT|none", help="Most power that computing may draw.")
    ] = None,
    threads: Annotated[
        str | None, typer.Option(metavar="N|none", help="Most threads that may compute at once.")
    ] = None,
    niceness: Annotated[
        str | None, typer.Option(metavar="0-19|none", help="How much computing stands back behind other programs.")
    ] = None,
    memory_mb: Annotated[
        str | None, typer.Option(metavar="MB|none", help="Most megabytes of memory that computing may use.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Set what the owners of these cars agree to. What no option names stays as it is.

    \b
    Example:
      idlewheel owner policy set car-0007 --owner ada --purpose general
      idlewheel owner policy set car-0007 --hours "Mon-Fri 22:00-06:00"
      idlewheel owner policy set car-0007 --timezone Europe/Oslo --floor 50
      idlewheel owner policy set car-0007 car-0008 --price-ceiling 0.25
      idlewheel owner policy set car-0007 --charging-only --month-mb 500
      idlewheel owner policy set car-0007 --threads 2 --niceness 19
      idlewheel owner policy set car-0007 --price-ceiling none --hours always
      idlewheel owner policy set car-0007 --file policy.json
    """
    options: dict[str, Any] = {
        "owner": owner,
        "purposes": purpose or None,
        "timezone": timezone,
        "charge_floor_percent": floor,
        "charge_coincident_only": charging_only,
        "least_pay_micro_per_h": None if least_pay is None else micro(least_pay),
    }
    link: dict[str, Any] = {"metered_allowed": metered, "least_mbps": least_mbps}
    changes = {name: value for name, value in options.items() if value is not None}
    _check_purposes(purpose or [])
    changes |= _limit("departure_charge_percent", departure_charge, most=100) | _limit("power_cap_w", power_cap_w)
    changes |= _limit("price_ceiling_micro_per_kwh", price_ceiling, micro)
    changes |= _limit("threads", threads, _count) | _limit("niceness", niceness, _count)
    changes |= _limit("memory_bytes", memory_mb, micro)
    changes |= _hours(hours)
    link = {name: value for name, value in link.items() if value is not None} | _limit("month_bytes", month_mb, micro)
    if purpose:
        changes["revoked"] = False
    if bool(changes or link) == (file is not None):
        raise BadInput("say what to change by options, or give a whole policy with --file")
    whole = None if file is None else _read(file)
    _set_each(vehicles, whole, changes, link, as_json=as_json, url=url)


@policy_app.command()
def revoke(vehicles: Vehicles, as_json: Json = False, url: Url = None) -> None:
    """Withdraw the consent for these cars: they stop at once, and it is on record.

    \b
    Example:
      idlewheel owner policy revoke car-0007
    """
    from idlewheel.client import Client  # noqa: PLC0415 - slow to load

    with Client(url) as client:
        _print([client.revoke(vehicle, by=_who()) for vehicle in vehicles], as_json=as_json)


@policy_app.command()
def history(vehicles: Vehicles, as_json: Json = False, url: Url = None) -> None:
    """Show every version of these cars' policies, the newest first.

    \b
    Example:
      idlewheel owner policy history car-0007
    """
    from idlewheel.client import Client  # noqa: PLC0415 - slow to load

    with Client(url) as client:
        _print([view for vehicle in vehicles for view in client.policy_history(vehicle)], as_json=as_json)


def _set_each(
    vehicles: list[str],
    whole: dict[str, Any] | None,
    changes: dict[str, Any],
    link: dict[str, Any],
    *,
    as_json: bool,
    url: str | None,
) -> None:
    import msgspec  # noqa: PLC0415 - slow to load

    from idlewheel.client import Client  # noqa: PLC0415 - slow to load

    views = []
    with Client(url) as client:
        for vehicle in vehicles:
            draft = whole
            if draft is None:
                try:
                    standing = msgspec.to_builtins(client.policy(vehicle).policy)
                except Refused as error:
                    if error.code != "policy_missing":
                        raise
                    standing = {}
                draft = standing | changes | {"link": standing.get("link", {}) | link}
            if "owner" not in draft or "purposes" not in draft:
                raise BadInput(f"nothing is on record for {vehicle} yet: say --owner and --purpose")
            views.append(client.set_policy(vehicle, draft, by=_who()))
    _print(views, as_json=as_json)


def _read(file: Path) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - slow to load

    try:
        draft = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no policy: {error}") from None
    return draft


def _check_purposes(purposes: list[str]) -> None:
    for purpose in purposes:
        if not re.fullmatch("[a-z0-9-]{1,32}", purpose):
            raise BadInput(
                f"a purpose is up to 32 lower-case letters, digits and -, as in general, and not {purpose!r}"
            )


def _limit(
    name: str, text: str | None, whole: "Callable[[float], int] | None" = None, most: float = inf
) -> dict[str, float | None]:
    """A limit that may be lifted by `none`."""
    if text is None:
        return {}
    if text == "none":
        return {name: None}
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{text!r} is neither a number nor none") from None
    if not 0 <= value <= most:
        raise BadInput(f"{text} is not an amount" + ("" if most == inf else f" from 0 to {most:g}"))
    return {name: value if whole is None else whole(value)}


def _count(value: float) -> int:
    if not value.is_integer():
        raise BadInput(f"{value:g} is not a whole number")
    return int(value)


def _hours(texts: list[str] | None) -> dict[str, Any]:
    from msgspec import to_builtins  # noqa: PLC0415 - slow to load

    from idlewheel.hours_text import parse_hours  # noqa: PLC0415 - loads the protocol

    if not texts:
        return {}
    return {"hours": [] if texts == ["always"] else to_builtins([parse_hours(text) for text in texts])}


def _who() -> str:
    """Whoever is logged in, as the coordinator takes names."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = ""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64] or "cli"


def _print(views: "list[PolicyView]", *, as_json: bool) -> None:
    if as_json:
        return typer.echo(json_text(views))
    from idlewheel.words import policy_lines  # noqa: PLC0415 - loads the protocol

    return typer.echo("\n\n".join(policy_lines(view) for view in views))
