"""`idlewheel owner …`: what owners ask. Only gathers the commands."""

import typer

from idlewheel.cli_policy import policy_app
from idlewheel.cli_statement import statement

__all__ = ["owner_app"]

owner_app = typer.Typer(help="What owners agree to, and what they earn.", no_args_is_help=True, rich_markup_mode=None)
owner_app.add_typer(policy_app, name="policy")
owner_app.command()(statement)
