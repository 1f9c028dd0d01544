"""The options that many commands have, and what `--json` prints. Runs nothing."""

from typing import Annotated

import typer

__all__ = ["Json", "Url", "json_text"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="IDLEWHEEL_URL", help="The coordinator; this machine's unless given."),
]


def json_text(value: object) -> str:
    """Indented JSON, with the names of the HTTP interface."""
    import msgspec  # noqa: PLC0415 - not needed without --json

    return msgspec.json.format(msgspec.json.encode(value)).decode()
