"""What the columns of somebody's table hold: which is the text, which the label, and of what kind the label is."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kerasllm.data.conll import is_conll
from kerasllm.data.source_settings import TABLE_KINDS, table_kind
from kerasllm.data.squad import is_squad
from kerasllm.data.tables import as_text, read_rows
from kerasllm.errors import UserError, did_you_mean

MAX_ROWS = 20_000
"""That are looked at, spread evenly over the table: many a table is sorted by label."""
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tags", "score",
               "rating", "stars", "grade")  # fmt: skip
SEPARATORS = (",", ";", "|")
MAX_CLASSES_OF_NUMBERS = 20
"""More different whole numbers than these are a number to be told, and not names of classes."""
MIN_TEXT_CHARACTERS = 4


@dataclass
class Column:
    """The cells of a column, empty ones left out."""

    name: str
    cells: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Cell -> how often it occurs, the most frequent first."""
        return Counter(dict(Counter(self.cells).most_common()))

    @property
    def mean_characters(self) -> float:
        """Of a cell."""
        return sum(map(len, self.cells)) / max(1, len(self.cells))

    @property
    def numbers(self) -> list[float] | None:
        """The cells as numbers; None if one is none."""
        try:
            return [float(cell) for cell in self.cells]
        except ValueError:
            return None


def guess_format(path: Path) -> Literal["tagged words", "questions", "table"]:
    """What a file holds, by what stands in it; a table where nothing else is recognised."""
    if is_squad(path):
        return "questions"
    if table_kind(path.name) != ".parquet" and is_conll(path):
        return "tagged words"
    return "table"


def spread_rows(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """At most `MAX_ROWS` rows of a table, every n-th of them, and how many rows it has."""
    rows: list[Mapping[str, Any]] = []
    number, every = 0, 1
    for number, (_, row) in enumerate(read_rows(path), start=1):
        if (number - 1) % every == 0:
            rows.append(row)
        if len(rows) > MAX_ROWS:
            rows, every = rows[::2], 2 * every
    return rows, number


def read_columns(path: Path) -> tuple[dict[str, Column], int]:
    """The columns of a table by name, with the cells of some of its rows; and the number of its rows.

    Raises:
        UserError: the file cannot be read as a table, or has no row.
    """
    if table_kind(path.name) not in TABLE_KINDS:
        raise UserError(f"{path}: has no known extension; use {', '.join(TABLE_KINDS)}, all but the last also .gz")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    columns: dict[str, Column] = {}
    rows, num_rows = spread_rows(path)
    for row in rows:
        for name, value in row.items():
            column = columns.setdefault(name, Column(name))
            cell = as_text(value, name).strip() if isinstance(value, str | int | float | None) else ""
            if cell:
                column.cells.append(cell)
    if not columns:
        raise UserError(f"{path}: holds no records")
    if len(columns) == 1 and ";" in (name := next(iter(columns))):
        raise UserError(f"{path}:1: has one column, '{name}'; separate the columns with commas instead of semicolons")
    return columns, num_rows


def find_column(path: Path, columns: dict[str, Column], option: str, name: str) -> Column:
    """The column that an option names.

    Raises:
        UserError: there is none of that name; with all that there are.
    """
    if name not in columns:
        raise UserError(f"{path}: {option}: no column '{name}'; {did_you_mean(name, columns)} "
                        f"(the file has {', '.join(columns)})")  # fmt: skip
    return columns[name]


def guess_label(path: Path, columns: dict[str, Column]) -> Column:
    """The column with the name of a label, or else the one with the fewest different values.

    Raises:
        UserError: there is none.
    """
    by_name = {name.lower(): column for name, column in columns.items()}
    named = [by_name[name] for name in LABEL_NAMES if name in by_name]
    few = [column for column in columns.values() if 2 <= len(column.counts) <= len(column.cells) // 4]
    candidates = named or sorted(few, key=lambda column: len(column.counts))
    if not candidates:
        raise UserError(
            f"{path}: no column has few different values, as a label has; name it with --label "
            f"(the file has {', '.join(columns)})"
        )
    return candidates[0]


def guess_texts(path: Path, columns: dict[str, Column], label: str) -> list[Column]:
    """The column with the longest texts, and the one that goes with it by its name, such as `text_b` with `text_a`.

    Raises:
        UserError: none holds text.
    """
    others = [column for name, column in columns.items() if name != label]
    texts = [c for c in others if c.numbers is None and c.mean_characters >= MIN_TEXT_CHARACTERS]
    if not texts:
        raise UserError(
            f"{path}: no column holds text; name it with --text (the file has {', '.join(columns)}, and "
            f"{label} is the label)"
        )
    longest = max(texts, key=lambda column: column.mean_characters)
    stem = longest.name.rstrip("12ABab")
    pair = [column for column in texts if column.name.rstrip("12ABab") == stem and len(column.name) > len(stem)]
    return pair if len(pair) == 2 else [longest]


def guess_kind(label: Column) -> tuple[str, str]:
    """`one_label`, `several_labels` or `number`; and the separator of several."""
    numbers, counts = label.numbers, label.counts
    if numbers is not None:
        is_whole = all(number.is_integer() for number in numbers)
        return ("one_label" if is_whole and len(counts) <= MAX_CLASSES_OF_NUMBERS else "number"), ","
    for separator in SEPARATORS:
        parts = {part.strip() for cell in counts for part in cell.split(separator)}
        if any(separator in cell for cell in counts) and len(parts) < len(counts):
            return "several_labels", separator
    return "one_label", ","
