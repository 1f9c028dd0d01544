"""Draws the demo's story in a terminal, or prints it as lines. Never changes the story, never asks anybody."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from idlewheel.demo.report import Report, summary_lines
from idlewheel.demo.story import Answer, CarCell, CarState, Event, Story

__all__ = ["DemoScreen", "Headline", "Show", "plain_progress", "print_summary", "showing"]

_SYMBOLS: Final = {
    CarState.COMPUTING: ("▶", "bold green"),
    CarState.READY: ("●", "cyan"),
    CarState.WAITING: ("◌", "yellow"),
    CarState.AWAY: ("○", "bright_black"),
    CarState.OFFLINE: ("·", "bright_black"),
    CarState.KILLED: ("✖", "bold red"),
}
_WORDS: Final = {
    CarState.COMPUTING: "computing",
    CarState.READY: "plugged in",
    CarState.WAITING: "not eligible",
    CarState.AWAY: "away",
    CarState.OFFLINE: "offline",
    CarState.KILLED: "killed",
}
_EVENT_STYLES: Final = {
    "departure": "yellow",
    "left": "bright_black",
    "came": "cyan",
    "released": "magenta",
    "killed": "bold red",
}
PictureOf = Callable[[int], list[str]]
_PLAIN_EVERY_S: Final = 2.0
_BARS: Final = " ▁▂▃▄▅▆▇█"
_CELL_WIDTH: Final = 20
_HEAD_LINES: Final = 6


@dataclass(slots=True)
class Headline:
    """What stands above the fleet: the title, the clock of the simulated day, and what is going on."""

    title: str
    clock: str = ""
    phase: str = ""


class DemoScreen:
    """A renderable for rich's Live, which fits itself to the terminal."""

    def __init__(self, headline: Headline, story: Story, picture_of: PictureOf) -> None:
        self._headline = headline
        self._story = story
        self._picture_of = picture_of

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, console.size.height
        fleet = _fleet(list(self._story.cars.values()), width, max(2, (height - _HEAD_LINES) // 2 - 1))
        below = max(3, height - _HEAD_LINES - len(fleet) - 1)
        yield _title(self._headline, width)
        yield Text()
        yield Group(*fleet)
        yield _legend(self._story)
        yield _progress(self._story, width)
        yield _rate(self._story, width)
        yield Text()
        yield self._feeds(width, below)

    def _feeds(self, width: int, height: int) -> Table:
        """Events on the left, the latest answers on the right."""
        left = width // 2 - 1
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=left, no_wrap=True, overflow="ellipsis")
        table.add_column(width=width - left - 2, no_wrap=True, overflow="ellipsis")
        events = [_event_line(event) for event in list(self._story.events)[-height:]]
        answers = self._answers(list(self._story.answers), height, width - left - 2)
        for line in range(height):
            table.add_row(
                events[line] if line < len(events) else Text(),
                answers[line] if line < len(answers) else Text(),
            )
        return table

    def _answers(self, answers: Sequence[Answer], height: int, width: int) -> list[Text]:
        pictured = [answer for answer in answers if self._picture_of(answer.row)]
        if pictured:
            return _pictures(pictured, self._picture_of, height, width)
        return [_answer_line(answer, width) for answer in answers[-height:]]


class Show:
    """Shows the story as it goes: on a screen where there is a `live` one, else as lines."""

    def __init__(self, console: Console, headline: Headline, story: Story, live: Live | None) -> None:
        self._console = console
        self._headline = headline
        self._story = story
        self._live = live
        self._progress_told_s = 0.0

    def phase(self, text: str) -> None:
        """Say what is going on now."""
        self._headline.phase = text
        if self._live is None:
            self._console.print(text, soft_wrap=True)
        self.refresh()

    def events(self, events: Iterable[Event]) -> None:
        """Tell what has just happened; the screen takes it from the story."""
        if self._live is None:
            for event in events:
                self._console.print(_event_line(event), soft_wrap=True)

    def refresh(self, clock: str = "") -> None:
        """Draw the screen anew; as lines, tell the progress every two seconds."""
        self._headline.clock = clock or self._headline.clock
        if self._live is not None:
            self._live.refresh()
        elif self._story.at_s >= self._progress_told_s + _PLAIN_EVERY_S:
            self._progress_told_s = self._story.at_s
            self._console.print(f"{self._story.at_s:5.1f}s {plain_progress(self._story)}", soft_wrap=True)


@contextlib.contextmanager
def showing(console: Console, headline: Headline, story: Story, pictures: PictureOf, *, plain: bool) -> Iterator[Show]:
    """Show on the console until the block is left; what was drawn last stays."""
    if plain:
        yield Show(console, headline, story, None)
        return
    # Drawn when asked, by the one thread that changes the story.
    with Live(DemoScreen(headline, story, pictures), console=console, auto_refresh=False) as live:
        yield Show(console, headline, story, live)


def print_summary(console: Console, report: Report) -> None:
    """Print the summary below whatever was shown."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in summary_lines(report):
        style = ("bold green" if report.all_right else "bold red") if label == "result" else ""
        table.add_row(Text(label, style="bright_black"), Text(text, style=style))
    console.print()
    if console.is_terminal:
        console.print(table)
    else:  # a log has no width
        console.print("\n".join(f"{label:<9}{text}" for label, text in summary_lines(report)), soft_wrap=True)


def plain_progress(story: Story) -> str:
    """One line that says how far the job is."""
    computing = sum(cell.state is CarState.COMPUTING for cell in story.cars.values())
    return f"{story.rows_done:,} of {story.rows:,} rows, {story.rows_per_s():,.0f} rows/s, {computing} cars computing"


def _title(headline: Headline, width: int) -> Text:
    left = Text(headline.title, style="bold")
    right = Text(f"{headline.clock}  {headline.phase}".strip())
    left.truncate(max(0, width - len(right) - 1), overflow="ellipsis")
    return Text.assemble(left, " " * max(1, width - len(left) - len(right)), right, no_wrap=True)


def _fleet(cells: Sequence[CarCell], width: int, most_lines: int) -> list[Text]:
    columns = max(1, width // _CELL_WIDTH)
    lines = -(-len(cells) // columns)
    shown = cells if lines <= most_lines else cells[: columns * (most_lines - 1)]
    rows = -(-len(shown) // columns)
    # Down the columns, as one reads a list.
    text = [
        Text.assemble(*(_cell(shown[place]) for place in range(line, len(shown), rows)), no_wrap=True)
        for line in range(rows)
    ]
    if len(shown) < len(cells):
        text.append(Text(f"and {len(cells) - len(shown)} more", style="bright_black"))
    return text


def _cell(cell: CarCell) -> Text:
    symbol, style = _SYMBOLS[cell.state]
    charge = "    " if cell.charge_percent is None else f"{cell.charge_percent:3.0f}%"
    text = Text.assemble((symbol, style), " ", (f"{cell.vehicle:<6.8}", style), f" {charge}")
    text.append(f" {cell.rows_done:>4}" if cell.rows_done else "     ", style="bold" if cell.rows_done else "")
    text.truncate(_CELL_WIDTH, pad=True)
    return text


def _legend(story: Story) -> Text:
    states = [cell.state for cell in story.cars.values()]
    parts: list[Text | tuple[str, str] | str] = []
    for state, (symbol, style) in _SYMBOLS.items():
        count = states.count(state)
        if count:
            parts += [(symbol, style), f" {count} {_WORDS[state]}   "]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _progress(story: Story, width: int) -> Table:
    counted = f"{story.rows_done:,}/{story.rows:,} rows"
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_row(ProgressBar(total=story.rows, completed=story.rows_done, width=width - len(counted) - 2), counted)
    return table


def _rate(story: Story, width: int) -> Text:
    spoken = f"{story.rows_per_s():,.0f} rows/s"
    rates = story.rates(max(1, width - len(spoken) - 2))
    top = max(rates) or 1.0
    bars = "".join(_BARS[round(max(0.0, rate) / top * (len(_BARS) - 1))] for rate in rates)
    return Text.assemble((bars, "green"), " ", spoken, no_wrap=True)


def _event_line(event: Event) -> Text:
    return Text.assemble((f"{event.at_s:5.1f}s ", "bright_black"), (event.text, _EVENT_STYLES.get(event.kind, "")))


def _answer_line(answer: Answer, width: int) -> Text:
    """The end of a path says more than its beginning."""
    room = max(8, width - len(answer.text) - 3)
    title = answer.title if len(answer.title) <= room else "…" + answer.title[-room + 1 :]
    return Text.assemble((title, "bright_black"), " → ", (answer.text, "bold"))


def _pictures(answers: Sequence[Answer], picture_of: PictureOf, height: int, width: int) -> list[Text]:
    """The latest pictures side by side, each with its answer below, in as many bands as there is room for."""
    sample = picture_of(answers[0].row)
    across, tall = len(sample[0]) + 2, len(sample) + 2
    per_band, bands = max(1, width // across), max(1, (height + 1) // tall)
    latest = list(answers)[-per_band * bands :]
    lines: list[Text] = []
    for start in range(0, len(latest), per_band):
        band = latest[start : start + per_band]
        lines += [
            Text("".join(f"{picture_of(answer.row)[line]:<{across}}" for answer in band)) for line in range(tall - 2)
        ]
        lines += [Text("".join(f"{'→ ' + answer.text:^{across - 2}}  " for answer in band), style="bold"), Text()]
    return lines[:height]
