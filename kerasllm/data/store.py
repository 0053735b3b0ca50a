"""Prepared examples on disk: ragged arrays that are written by appending and read through a memory map."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.source_settings import PICTURE
from kerasllm.errors import UserError

MANIFEST = "prepared.json"
CUT_TOKENS = "num_cut_tokens"
"""The feature that says how many tokens of an example did not fit."""
RECORD = "record"
"""The feature that says which record an example was made of, where a record may give several examples or none."""
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 1024


def _file(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}")


class RaggedWriter:
    """Appends rows of unequal length to `<path>.values` and `<path>.offsets`; memory does not grow with the rows.

    Use it as a context manager: `<path>.json` with counts and checksums is written when the block ends well.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._num_rows = 0
        self._num_values = 0
        self._checksums = {"values": 0, "offsets": 0}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files = {part: open(_file(path, part), "wb") for part in ("values", "offsets")}  # noqa: SIM115
        self._write("offsets", np.zeros(1, "<i8"))

    def _write(self, part: str, array: np.ndarray) -> None:
        data = array.tobytes()
        self._checksums[part] = zlib.crc32(data, self._checksums[part])
        self._files[part].write(data)

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Append `len(lengths)` rows, whose values stand one after the other in `values`."""
        if int(np.sum(lengths)) != len(values):
            raise ValueError(f"lengths add up to {int(np.sum(lengths))}, but there are {len(values)} values")
        self._write("values", np.asarray(values).astype(self._dtype, casting="same_kind", copy=False))
        self._write("offsets", (self._num_values + np.cumsum(lengths)).astype("<i8"))
        self._num_rows += len(lengths)
        self._num_values += len(values)

    def append_texts(self, texts: Iterable[str | bytes]) -> None:
        """Append one row of UTF-8 bytes for each text, or the bytes that it is (dtype uint8)."""
        encoded = [text if isinstance(text, bytes) else text.encode("utf-8") for text in texts]
        self.append(np.frombuffer(b"".join(encoded), np.uint8), np.array([len(text) for text in encoded], np.int64))

    def __enter__(self) -> "RaggedWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if error is None:
            counts = {"dtype": self._dtype.name, "num_rows": self._num_rows, "num_values": self._num_values}
            _file(self._path, "json").write_text(json.dumps(counts | {"crc32": self._checksums}) + "\n")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete its directory and run prepare again") from error


def _verify(path: Path, num_bytes: int, checksum: int) -> None:
    """Compare size and checksum, reading in chunks so that nothing stays in memory."""
    try:
        found = path.stat().st_size
        actual = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                actual = zlib.crc32(chunk, actual)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run prepare again") from error
    if found != num_bytes:
        raise UserError(f"{path}: has {found} bytes instead of {num_bytes}; delete its directory and run prepare again")
    if actual != checksum:
        raise UserError(f"{path}: does not match its checksum; delete its directory and run prepare again")


class RaggedArray:
    """Rows of unequal length, memory-mapped: `array[i]` is row i, `lengths` the length of every row.

    Raises `UserError` when a file is missing, truncated or does not match its checksum.
    """

    def __init__(self, path: Path) -> None:
        counts = _read_json(_file(path, "json"))
        self._path = path
        self._dtype = np.dtype(counts["dtype"]).newbyteorder("<")
        self._num_rows = counts["num_rows"]
        self._num_values = counts["num_values"]
        _verify(_file(path, "values"), self._num_values * self._dtype.itemsize, counts["crc32"]["values"])
        _verify(_file(path, "offsets"), (self._num_rows + 1) * 8, counts["crc32"]["offsets"])

    @cached_property
    def values(self) -> np.ndarray:
        """All rows, one after the other."""
        if self._num_values == 0:  # an empty file cannot be mapped
            return np.zeros(0, self._dtype)
        return np.memmap(_file(self._path, "values"), self._dtype, mode="r")

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [N + 1]: row i is `values[offsets[i]:offsets[i + 1]]`."""
        return np.memmap(_file(self._path, "offsets"), "<i8", mode="r")

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def chunks(self, num_rows: int = _CHUNK_ROWS) -> Iterator[list[np.ndarray]]:
        """All rows in order, `num_rows` at a time, read past the memory map so that memory stays bounded."""
        with _file(self._path, "values").open("rb") as values, _file(self._path, "offsets").open("rb") as offsets:
            start = np.fromfile(offsets, "<i8", 1)
            while len(ends := np.fromfile(offsets, "<i8", num_rows)):
                bounds = np.concatenate([start, ends])
                start = ends[-1:]
                chunk = np.fromfile(values, self._dtype, int(bounds[-1] - bounds[0]))
                yield np.split(chunk, bounds[1:-1] - bounds[0])


class RaggedTexts:
    """Texts as rows of UTF-8 bytes: `texts[i]` is a str."""

    def __init__(self, path: Path) -> None:
        self.array = RaggedArray(path)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> str:
        return self._value(self.array[row])

    def __iter__(self) -> Iterator[str]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self, num_rows: int = _CHUNK_ROWS) -> Iterator[list[str]]:
        """All texts in order, `num_rows` at a time."""
        for rows in self.array.chunks(num_rows):
            yield [self._value(row) for row in rows]

    def _value(self, row: np.ndarray) -> str:
        return row.tobytes().decode("utf-8")


class RaggedFiles(RaggedTexts):
    """The contents of files: `files[i]` is bytes."""

    def _value(self, row: np.ndarray) -> bytes:
        return row.tobytes()


def stored_field(directory: Path, split: str, field: str) -> RaggedTexts:
    """What a prepared directory has of a field: pictures as bytes, anything else as texts."""
    return (RaggedFiles if field == PICTURE else RaggedTexts)(text_path(directory, split, field))


@dataclass(frozen=True)
class Examples:
    """One prepared split: numbers by feature for each example, cleaned texts by field for each record.

    Row i of both belongs together, unless the feature `record` says which record the example i was made of.
    """

    features: dict[str, RaggedArray]
    texts: dict[str, RaggedTexts]

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [N, F], the features in the order of `features`."""
        return np.stack([array.lengths for array in self.features.values()], axis=1)

    @cached_property
    def token_lengths(self) -> np.ndarray:
        """int32 [N, F'], those of the features that are no pictures: pixels, of type uint8, are no tokens."""
        is_sequence = [array.values.dtype != np.uint8 for array in self.features.values()]
        return self.lengths[:, is_sequence]

    @property
    def num_cut(self) -> int | None:
        """Records of which tokens were cut off; None for a task that cuts nothing."""
        array = self.features.get(CUT_TOKENS)
        return None if array is None else int(np.count_nonzero(array.values))

    def record(self, row: int) -> dict[str, Any]:
        """Token ids by feature and texts by field of one row, as plain values."""
        features = {name: array[row].tolist() for name, array in self.features.items()}
        number = features[RECORD][0] if RECORD in features else row
        return {"row": int(row), **features, **{field: texts[number] for field, texts in self.texts.items()}}


def feature_path(directory: Path, split: str, name: str) -> Path:
    """Where the token ids of a feature lie in a prepared directory, for `RaggedWriter` and `RaggedArray`."""
    return directory / split / f"feature.{name}"


def text_path(directory: Path, split: str, field: str) -> Path:
    """Where the texts of a field lie in a prepared directory, for `RaggedWriter` and `RaggedTexts`."""
    return directory / split / f"text.{field}"


class Prepared:
    """A directory written by `prepare`: the vocabulary, the examples of every split, and the cleaning report.

    Args:
        from_cache: whether it was there before this process asked for it.
    """

    def __init__(self, directory: Path, from_cache: bool = True) -> None:
        self.directory = Path(directory)
        self.from_cache = from_cache
        self.manifest = _read_json(self.directory / MANIFEST)

    @property
    def splits(self) -> dict[str, int]:
        """Split -> number of examples."""
        return self.manifest["splits"]

    @property
    def vocabulary_size(self) -> int | None:
        """Number of token ids of the tokenizer, None for a task without text."""
        return self.manifest["vocabulary_size"]

    @property
    def report(self) -> dict:
        """What cleaning kept and dropped by split, see `cleaning.SplitReport` and `format_report`."""
        return self.manifest["cleaning"]

    @cached_property
    def checksum(self) -> str:
        """Of all features, hexadecimal: equal where every example was prepared to the same numbers."""
        digest = hashlib.sha256()
        for file in sorted(self.directory.glob("*/feature.*.json")):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def examples(self, split: str) -> Examples:
        """Open a split. Raises `UserError` for one that was not prepared, and for damaged files."""
        if split not in self.splits:
            known = ", ".join(self.splits) or "none, because the recipe names no data"
            raise UserError(f"split '{split}' was not prepared; there are {known}")
        features = {name: RaggedArray(feature_path(self.directory, split, name)) for name in self.manifest["features"]}
        texts = {field: stored_field(self.directory, split, field) for field in self.manifest["fields"]}
        return Examples(features, texts)
