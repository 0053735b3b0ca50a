"""Where records come from. Each is a dict field -> text; they are read one by one, so that memory does not grow."""

import csv
import gzip
import importlib.metadata
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.settings import (
    BuiltInSettings,
    DataSettings,
    ParallelTextSettings,
    TableSettings,
    TfdsSettings,
    table_kind,
)
from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import sha256_of_file

BUILT_IN_LIBRARIES = {"dates": ["babel"], "digits": ["scikit-learn"], "slopes": []}
"""Built-in set, which is also its file here -> the libraries that it depends on."""

Record = dict[str, str]
Row = tuple[int, Mapping[str, Any]]


def _locate(file: str, data_dir: Path | None) -> Path:
    path = (data_dir or Path()) / file
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"{path}: is not a file")
    if path.parent.is_dir():
        names = [each.name for each in path.parent.iterdir()]
        raise UserError(f"{path}: no such file; {did_you_mean(path.name, names)}")
    raise UserError(f"{path}: no such file; name the folder of the data with --data-dir or KERASLLM_DATA")


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


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _read_parallel(paths: Mapping[str, Path]) -> Iterator[Record]:
    streams = [read_lines(path) for path in paths.values()]
    for number, lines in enumerate(zip_longest(*streams)):
        if None in lines:
            counts = [
                number + (line is not None) + sum(1 for _ in stream)
                for line, stream in zip(lines, streams, strict=True)
            ]
            found = ", ".join(f"{path} has {count} lines" for path, count in zip(paths.values(), counts, strict=True))
            raise UserError(f"{found}; line n of each must belong to the same record")
        yield dict(zip(paths, map(_without_end, lines), strict=True))


def _check_columns(path: Path, known: Iterable[str], columns: Mapping[str, str]) -> None:
    known = list(known)
    for field, column in columns.items():
        if column not in known:
            raise UserError(f"{path}: data.columns.{field}: no column '{column}'; {did_you_mean(column, known)}")


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(read_lines(path), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), start=1):
        text = _without_end(line)
        yield number, text.split("\t") if text else []


def _delimited_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in (_csv_cells if table_kind(path.name) == ".csv" else _tsv_cells)(path):
        if not cells:
            continue
        if header is None:
            header = cells
            _check_columns(path, header, columns)
        elif len(cells) != len(header):
            raise UserError(
                f"{path}:{number}: has {len(cells)} columns, but the header has {len(header)}; "
                "a separator inside a cell must be quoted (csv) or replaced (tsv)"
            )
        else:
            yield number, dict(zip(header, cells, strict=True))


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
            _check_columns(path, row, columns)
            is_first = False
        yield number, row


def _parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, columns)
            batches = file.iter_batches(batch_size=1024, columns=list(columns.values()))
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def _as_text(value: Any, place: str) -> str:
    """A missing cell (absent, null, not a number) is an empty text, which cleaning drops."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{place}: holds a {type(value).__name__}; text or a number is needed")


_TABLE_ROWS: dict[str, Callable[[Path, Mapping[str, str]], Iterator[Row]]] = {
    ".csv": _delimited_rows,
    ".tsv": _delimited_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}


def _read_table(path: Path, columns: Mapping[str, str]) -> Iterator[Record]:
    for number, row in _TABLE_ROWS[table_kind(path.name)](path, columns):
        yield {
            field: _as_text(row.get(column), f"{path}:{number}: column '{column}'") for field, column in columns.items()
        }


def _tfds_builder(data: TfdsSettings, data_dir: Path | None) -> Any:
    """The builder of a dataset that lies ready on this disk, downloaded and written if it did not before."""
    import tensorflow_datasets as tfds

    try:
        with redirect_stdout(sys.stderr):  # standard output belongs to the answers of a command
            builder = tfds.builder(data.name, data_dir=data_dir)
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the server or the code of one dataset may raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"data.name: TFDS cannot get '{data.name}' ({reason}); check the name and the network"
        ) from error
    return builder


def _read_tfds(data: TfdsSettings, split: str, data_dir: Path | None) -> Iterator[Record]:
    import tensorflow_datasets as tfds

    builder = _tfds_builder(data, data_dir)
    try:
        examples = tfds.as_numpy(builder.as_dataset(split=getattr(data, split), shuffle_files=False))
    except ValueError as error:
        raise UserError(f"data.{split}: {str(error).splitlines()[0]}") from error
    for number, example in enumerate(examples):
        record = {}
        for field, column in data.columns.items():
            value = example
            for name in column.split("/"):
                _check_columns(Path(data.name), value if isinstance(value, dict) else [], {field: name})
                value = value[name]
            if isinstance(value, np.generic | np.ndarray):
                value = value.tolist()
            if isinstance(value, bytes):
                value = value.decode("utf-8")
            record[field] = _as_text(value, f"{data.name}: record {number}: feature '{column}'")
        yield record


def _tfds_fingerprint(data: TfdsSettings, data_dir: Path | None) -> dict[str, str]:
    """The description files of a dataset, which hold its version and the sizes of its parts."""
    root = data_dir or Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    folder = root / data.name.partition(":")[0]
    if not any(folder.glob("**/dataset_info.json")):
        _tfds_builder(data, data_dir)
    return {str(path.relative_to(root)): sha256_of_file(path) for path in sorted(folder.glob("**/dataset_info.json"))}


def _generate(data: BuiltInSettings, split: str) -> Iterator[Record]:
    """The records of a built-in set."""
    if data.name == "digits":
        from kerasllm.data.digits import generate_digits as generate  # scikit-learn takes a second to load
    elif data.name == "slopes":
        from kerasllm.data.slopes import generate_slopes as generate
    else:
        from kerasllm.data.dates import generate_dates as generate
    yield from generate(split, getattr(data, split), data.seed)


def source_files(data: DataSettings, split: str, data_dir: Path | None) -> dict[str, Path]:
    """The local files of a split, by field for parallel texts; {} where there are none.

    Raises:
        UserError: one of them is missing.
    """
    if isinstance(data, ParallelTextSettings):
        return {field: _locate(file, data_dir) for field, file in getattr(data, split).items()}
    if isinstance(data, TableSettings):
        return {"table": _locate(getattr(data, split), data_dir)}
    return {}


def source_fingerprint(data: DataSettings, data_dir: Path | None) -> dict[str, str]:
    """What the records depend on besides the settings: the contents of the files, or the version of their writer."""
    if isinstance(data, BuiltInSettings):
        versions = {library: importlib.metadata.version(library) for library in BUILT_IN_LIBRARIES[data.name]}
        return {**versions, data.name: sha256_of_file(Path(__file__).with_name(f"{data.name}.py"))}
    if isinstance(data, TfdsSettings):
        return _tfds_fingerprint(data, data_dir)
    try:
        return {
            f"{split}/{name}": sha256_of_file(path)
            for split in data.splits
            for name, path in source_files(data, split, data_dir).items()
        }
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def read_records(data: DataSettings, split: str, data_dir: Path | None = None) -> Iterator[Record]:
    """Yield the records of a split in the order of the source.

    Args:
        split: one of `data.splits`.
        data_dir: what the files of the recipe are relative to; the working directory if None.

    Raises:
        UserError: a file is missing, unreadable, not UTF-8, of another length than its counterpart, without the
            column that the recipe names, or without any record; or TFDS cannot give the dataset.
    """
    if isinstance(data, BuiltInSettings):
        yield from _generate(data, split)
        return
    paths = source_files(data, split, data_dir)
    if isinstance(data, ParallelTextSettings):
        records = _read_parallel(paths)
    elif isinstance(data, TableSettings):
        records = _read_table(paths["table"], data.columns)
    else:
        records = _read_tfds(data, split, data_dir)
    first = next(records, None)
    if first is None:
        place = ", ".join(map(str, paths.values())) or f"{data.name}, {getattr(data, split)}"
        raise UserError(f"{place}: holds no records; data.{split} needs at least one")
    yield first
    yield from records
