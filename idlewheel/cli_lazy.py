"""Commands whose modules are slow to load: listed by name and help, loaded when called. Runs nothing itself."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Program"]

_LATE = {
    "agent": ("idlewheel.agent:agent", "Be one vehicle until Ctrl-C."),
    "demo": ("idlewheel.demo.command:demo", "Watch a fleet of cars compute something real, while cars leave."),
    "up": ("idlewheel.up:up", "Serve until Ctrl-C: broker, coordinator, simulated cars."),
}


class Program(TyperGroup):
    """The commands of the app and those that come late."""

    # Contexts and commands are Any here: Typer keeps their classes to itself.

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order in which help shows them."""
        return [*super().list_commands(ctx), *_LATE]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name."""
        if cmd_name in _LATE:
            return _Late(cmd_name, *_LATE[cmd_name])
        return super().get_command(ctx, cmd_name)


class _Late(TyperCommand):
    """Stands for a command until it is called."""

    def __init__(self, name: str, target: str, text: str) -> None:
        super().__init__(name, help=text, rich_markup_mode=None)
        self._target = target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Load the command and let it parse its arguments; from here on it takes this one's place."""
        module, _, function = self._target.partition(":")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(self.name)(getattr(import_module(module), function))
        return typer.main.get_command(app).make_context(info_name, args, parent, **extra)
