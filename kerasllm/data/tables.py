"""Lines and tables from files: csv, tsv, jsonl and parquet become rows, and rows become records."""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kerasllm.data.source_settings import PICTURE, table_kind
from kerasllm.errors import UserError, did_you_mean

Row = tuple[int, Mapping[str, Any]]
"""The number of the line, or of the row in a parquet file, and its cells by column."""


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a text file, plain or .gz, with their ends. Only "\n" ends a line.

    Raises:
        UserError: unreadable, damaged, or not UTF-8 (with line, and byte from the beginning of the unpacked file).
    """
    offset = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: byte {offset + error.start}: not UTF-8 (0x{line[error.start]:02x}); "
                        "convert the file, for example with `iconv -f latin1 -t utf-8`"
                    ) from error
                offset += len(line)
                yield text.removeprefix("\ufeff") if number == 1 else text
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gz file ({error}); get it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def without_end(line: str) -> str:
    """A line without the "\\n" or "\\r\\n" at its end."""
    return line.removesuffix("\n").removesuffix("\r")


def check_columns(path: Path, known: Iterable[str], columns: Mapping[str, str]) -> None:
    """Raise `UserError` for a column that the recipe names and the file does not have, with both lists."""
    known = list(known)
    for field, column in columns.items():
        if column not in known:
            asked, found = ", ".join(columns.values()), ", ".join(known)
            raise UserError(
                f"{path}: data.columns.{field}: no column '{column}'; {did_you_mean(column, known)} "
                f"(the recipe names {asked}; the file has {found})"
            )


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(read_lines(path), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), start=1):
        text = without_end(line)
        yield number, text.split("\t") if text else []


def _delimited_rows(
    path: Path,
    columns: Mapping[str, str],
    header: Sequence[str] | None,
    cells_of: Callable[[Path], Iterator[tuple[int, list[str]]]],
    extra_cells: str,
) -> Iterator[Row]:
    if header is not None:
        check_columns(path, header, columns)
    for number, cells in cells_of(path):
        if not cells:
            continue
        if header is None:
            header = cells
            check_columns(path, header, columns)
        elif len(cells) < len(header) or (len(cells) > len(header) and extra_cells == "refuse"):
            advice = "a separator inside a cell must be quoted (csv) or replaced (tsv)"
            if len(cells) > len(header):
                advice += "; data.extra_cells: ignore leaves out what comes after the last column"
            raise UserError(f"{path}:{number}: the header has {len(header)} columns, this line {len(cells)}; {advice}")
        else:
            yield number, dict(zip(header, cells, strict=False))


def _jsonl_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    is_first = True
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}:{number}: is no JSON object; write {{"column": "text"}} on each line')
        if is_first:
            check_columns(path, row, columns)
            is_first = False
        yield number, row


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_columns(path, file.schema_arrow.names, columns)
            batches = file.iter_batches(batch_size=1024, columns=list(columns.values()) or None)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def as_text(value: Any, place: str) -> str:
    """A missing cell (absent, null, not a number) is an empty text, which cleaning drops."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{place}: holds a {type(value).__name__}; text or a number is needed")


def join_list(value: Any, place: str) -> Any:
    """A list of words as these with single spaces between them; what is no list as it is."""
    if not isinstance(value, list):
        return value
    for number, word in enumerate(value, start=1):
        if not isinstance(word, str) or word.split() != [word]:
            raise UserError(f"{place}: {number} of its list is {word!r}; a word without white space is needed")
    return " ".join(value)


_CELLS = {".csv": _csv_cells, ".tsv": _tsv_cells}


def read_rows(
    path: Path,
    columns: Mapping[str, str] | None = None,
    header: Sequence[str] | None = None,
    kind: str | None = None,
    extra_cells: str = "refuse",
) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        columns: field -> column, which the file must have; other columns may be left out. None reads all.
        header: the names of the columns, for a csv or tsv file whose first line does not hold them.
        kind: one of `TABLE_KINDS`; None goes by the extension.
        extra_cells: `refuse` or `ignore`, where a row of a csv or tsv file has more cells than the header.

    Raises:
        UserError: unreadable, damaged, or without one of the columns.
    """
    kind, columns = kind or table_kind(path.name), columns or {}
    if kind in _CELLS:
        return _delimited_rows(path, columns, header, _CELLS[kind], extra_cells)
    return (_jsonl_rows if kind == ".jsonl" else _parquet_rows)(path, columns)


def read_table(
    path: Path,
    columns: Mapping[str, str],
    header: Sequence[str] | None = None,
    kind: str | None = None,
    extra_cells: str = "refuse",
    join_lists: bool = False,
) -> Iterator[dict[str, str]]:
    """Yield the records of a table, field -> text; `join_lists` makes texts of lists, the rest is as in `read_rows`."""
    for number, row in read_rows(path, columns, header, kind, extra_cells):
        record = {}
        for field, column in columns.items():
            place = f"{path}:{number}: column '{column}'"
            if field == PICTURE:
                from kerasllm.data.pictures import picture_in

                record[field] = picture_in(row.get(column), path.parent, place)
                continue
            value = join_list(row.get(column), place) if join_lists else row.get(column)
            record[field] = as_text(value, place)
        yield record
