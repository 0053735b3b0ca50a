"""What is shown on standard error: messages, progress bars with rate and time left, tables.

Standard output belongs to answers and `--json`. Where standard error is no terminal, a bar is a line now and
then, and one at its end.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SPEED_ESTIMATE_SECONDS = 24 * 60 * 60
"""The time left follows from the last units (rich keeps a thousand), even where one takes hours."""
LINE_SECONDS = 30
"""Between the lines that stand for a bar where there is no terminal."""

LOG_COLUMNS = None if sys.stderr.isatty() or "COLUMNS" in os.environ else 120
"""Where there is no terminal whose width a table must fit; rich would take 80, and break numbers to fit."""

console = Console(stderr=True, width=LOG_COLUMNS, highlight=False, markup=False, emoji=False)


def be_quiet() -> None:
    """From here on this process shows nothing but errors: another one says the same."""
    console.quiet = True


def say(message: str) -> None:
    """Shows one message, as it is: no markup, no wrapping."""
    console.print(message, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Shows a table; values are written as `str` gives them, and numbers are set to the right.

    With empty names for all columns there is no head.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    console.print(table)


class ProgressLine:
    """One running bar: how far it is, and named figures beside it. Made by `progress`."""

    def __init__(self, description: str, unit: str, bars: Progress, total: int | None):
        self.description = description
        self.unit = unit
        self.completed = 0
        self.fields: dict[str, object] = {}
        self._bars = bars
        self._started = self._last_line = time.monotonic()
        self._task = bars.add_task(description, total=total, unit=unit, figures="")

    def advance(self, amount: int = 1) -> None:
        """Moves the bar on by `amount` units."""
        self.completed += amount
        self._bars.advance(self._task, amount)
        if not console.is_terminal and time.monotonic() > self._last_line + LINE_SECONDS:
            self._last_line = time.monotonic()
            say(self._line())

    def update(self, description: str | None = None, *, total: int | None = None, **fields: object) -> None:
        """Changes the words before the bar, its total, or the figures after it (`update(loss="2.31")`)."""
        self.description = description or self.description
        self.fields.update(fields)
        self._bars.update(self._task, description=self.description, total=total, figures=self._figures())

    def summary(self) -> str:
        """Returns the line that stands for the whole bar: `prepare: 29,000 sentences in 3.1 s (9,354/s)`."""
        seconds = time.monotonic() - self._started
        rate = f" ({_rate(self.completed / seconds)})" if seconds > 0.1 else ""
        count = f"{self.completed:,} {self.unit}".strip()
        return f"{self.description}: {count} in {seconds:.1f} s{rate}  {self._figures()}".rstrip()

    def _line(self) -> str:
        task = self._bars.tasks[0]
        left = f", {timedelta(seconds=math.ceil(task.time_remaining))} left" if task.time_remaining else ""
        return f"{self.description}: {_count(task)}{left}  {self._figures()}".rstrip()

    def _figures(self) -> str:
        return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.fields.items())


@contextmanager
def progress(description: str, total: int | None = None, unit: str = "") -> Iterator[ProgressLine]:
    """Shows a bar while the block runs, with count, rate, time left and figures; afterwards its one-line summary.

    Args:
        description: what is being done.
        total: how many units there are, where that is known.
        unit: what is counted, in the plural.
    """
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        _CountColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=console,
        refresh_per_second=4,
        speed_estimate_period=SPEED_ESTIMATE_SECONDS,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        line = ProgressLine(description, unit, bars, total)
        yield line
    say(line.summary())


class _CountColumn(ProgressColumn):
    """Shows `1,200/29,000 sentences 9,354/s`."""

    def render(self, task: Task) -> Text:
        return Text(_count(task))


def _count(task: Task) -> str:
    total = f"/{int(task.total):,}" if task.total is not None else ""
    rate = f" {_rate(task.speed)}" if task.speed else ""
    return f"{int(task.completed):,}{total} {task.fields['unit']}{rate}"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"
