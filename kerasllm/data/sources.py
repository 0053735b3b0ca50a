"""Where records come from. Each is a dict field -> text; they are read one by one, so that memory does not grow."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from hashlib import blake2b
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.cleaning import bytes_of
from kerasllm.data.conll import TAGS, read_conll
from kerasllm.data.documents import split_documents
from kerasllm.data.source_settings import (
    PICTURE,
    BuiltInSettings,
    ConllSettings,
    DataSettings,
    DocumentsSettings,
    FileSettings,
    IdxSettings,
    ParallelTextSettings,
    PicturesSettings,
    SquadSettings,
    TfdsSettings,
)
from kerasllm.data.squad import read_squad
from kerasllm.data.tables import as_text, check_columns, read_lines, read_table, without_end
from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import sha256_of_directory, sha256_of_file

BUILT_IN_LIBRARIES = {
    "dates": ["babel"],
    "date_languages": ["babel"],
    "date_mentions": ["babel"],
    "digits": ["scikit-learn"],
    "python_docs": [],
    "slopes": [],
}
"""Built-in set, which is also its file here -> the libraries that it depends on."""
BUILT_IN_FROM = {"date_languages": ["dates"], "date_mentions": ["dates"]}
"""Built-in set -> the files of others that it is made with."""

Record = dict[str, str | bytes]


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
        yield dict(zip(paths, map(without_end, lines), strict=True))


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
    features = {field: _feature_of(builder.info.features, column) for field, column in data.columns.items()}
    decoders = None
    if isinstance(features.get(PICTURE), tfds.features.Image):
        decoders = _at(data.columns[PICTURE], tfds.decode.SkipDecoding())  # the files as they are
    try:
        dataset = builder.as_dataset(split=getattr(data, split), shuffle_files=False, decoders=decoders)
        examples = tfds.as_numpy(dataset)
    except ValueError as error:
        raise UserError(f"data.{split}: {str(error).splitlines()[0]}") from error
    for number, example in enumerate(examples):
        record = {}
        for field, column in data.columns.items():
            value = example
            for name in column.split("/"):
                check_columns(Path(data.name), value if isinstance(value, dict) else [], {field: name})
                value = value[name]
            place = f"{data.name}: record {number}: feature '{column}'"
            if isinstance(features[field], tfds.features.ClassLabel) and value >= 0:  # where it has none, it is -1
                value = features[field].int2str(value)
            record[field] = _picture_of(value) if field == PICTURE else _text_of(value, place)
        yield record


def _feature_of(features: Any, column: str) -> Any:
    """What TFDS knows of a column, whose name may have several parts; None where there is none."""
    import tensorflow_datasets as tfds

    for name in column.split("/"):
        features = features[name] if isinstance(features, tfds.features.FeaturesDict) and name in features else None
    return features


def _at(column: str, value: Any) -> dict[str, Any]:
    """A value in as many dicts as the name of a column has parts."""
    for name in reversed(column.split("/")):
        value = {name: value}
    return value


def _text_of(value: Any, place: str) -> str:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return as_text(value.decode("utf-8") if isinstance(value, bytes) else value, place)


def _picture_of(found: bytes | np.ndarray) -> bytes:
    from kerasllm.data.pictures import png_of

    if isinstance(found, bytes):
        return found
    return png_of(found[:, :, 0] if found.shape[2] == 1 else found)


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
    elif data.name == "python_docs":
        from kerasllm.data.python_docs import generate_python_docs as generate
    elif data.name == "date_languages":
        from kerasllm.data.date_languages import generate_date_languages as generate
    elif data.name == "date_mentions":
        from kerasllm.data.date_mentions import generate_date_mentions as generate
    else:
        from kerasllm.data.dates import generate_dates as generate
    yield from generate(split, getattr(data, split), data.seed)


def share_of(record: Record, shares: Mapping[str, float]) -> str:
    """The split that a record of the training file belongs to, by its texts alone: equal records stay together, and
    none changes its split when others are added."""
    digest = blake2b(bytes_of(record), digest_size=8).digest()
    place, end = int.from_bytes(digest, "little") / 2**64, 0.0
    for split, share in shares.items():
        end += share
        if place < end:
            return split
    return "train"


def _read_split(data: FileSettings, split: str, paths: Mapping[str, Path], data_dir: Path | None) -> Iterator[Record]:
    """The records of a file, or of the share of the training file that makes up a split."""
    of_train = split == "train" or split in data.shares
    named = "train" if of_train else split
    if isinstance(data, ConllSettings):
        records = read_conll(paths["table"], data.columns, data.scheme)
    elif isinstance(data, PicturesSettings):
        from kerasllm.data.pictures import find_pictures, read_pictures

        records = read_pictures(*find_pictures(getattr(data, named), data_dir))
    elif isinstance(data, IdxSettings):
        from kerasllm.data.pictures import read_idx

        records = read_idx(paths)
    else:
        path, header = paths["table"], data.header.get(named)
        records = read_table(path, data.columns, header, data.kind_of(path.name), data.extra_cells, data.join_lists)
    if not data.shares or not of_train:
        return records
    return (record for record in records if share_of(_without_tags(record, data), data.shares) == split)


def _without_tags(record: Record, data: FileSettings) -> Record:
    """What decides which share a record belongs to: of a sentence the words alone."""
    if isinstance(data, ConllSettings):
        return {field: text for field, text in record.items() if field != TAGS}
    return record


def _read_documents(data: DocumentsSettings, split: str, paths: Mapping[str, Path]) -> Iterator[Record]:
    """The documents of the files, or of the share of the training files that makes up a split."""
    texts = chain.from_iterable(
        split_documents(read_lines(path), data.document_start, data.escapes) for path in paths.values()
    )
    records = ({"text": text} for text in texts)
    if not data.shares or not (split == "train" or split in data.shares):
        return records
    return (record for record in records if share_of(record, data.shares) == split)


def source_files(data: DataSettings, split: str, data_dir: Path | None) -> dict[str, Path]:
    """The local files of a split, by field for parallel texts, by number for documents; {} where there are none.

    Raises:
        UserError: one of them is missing.
    """
    if isinstance(data, ParallelTextSettings):
        return {field: _locate(file, data_dir) for field, file in getattr(data, split).items()}
    if isinstance(data, FileSettings):
        part = data.train if split in data.shares else getattr(data, split)
        if isinstance(data, PicturesSettings):
            from kerasllm.data.pictures import find_pictures

            return {"pictures": find_pictures(part, data_dir)[0]}
        if isinstance(data, IdxSettings):
            return {field: _locate(file, data_dir) for field, file in part.model_dump().items()}
        return {"table": _locate(part, data_dir)}
    if isinstance(data, SquadSettings):
        return {"squad": _locate(getattr(data, split).file, data_dir)}
    if isinstance(data, DocumentsSettings):
        return {str(number): _locate(file, data_dir) for number, file in enumerate(data.files(split))}
    return {}


def source_fingerprint(data: DataSettings, data_dir: Path | None) -> dict[str, str]:
    """What the records depend on besides the settings: the contents of the files, or the version of their writer."""
    if isinstance(data, BuiltInSettings):
        versions = {library: importlib.metadata.version(library) for library in BUILT_IN_LIBRARIES[data.name]}
        if data.name == "python_docs":
            versions = {"python": f"{platform.python_version()} {sys.platform}"}
        files = [data.name, *BUILT_IN_FROM.get(data.name, [])]
        return {**versions, **{name: sha256_of_file(Path(__file__).with_name(f"{name}.py")) for name in files}}
    if isinstance(data, TfdsSettings):
        return _tfds_fingerprint(data, data_dir)
    try:
        return {
            f"{split}/{name}": sha256_of_directory(path) if path.is_dir() else sha256_of_file(path)
            for split in data.splits
            if split not in getattr(data, "shares", {})
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
    elif isinstance(data, FileSettings):
        records = _read_split(data, split, paths, data_dir)
    elif isinstance(data, SquadSettings):
        records = read_squad(paths["squad"], getattr(data, split).articles, data.on_missing_answer == "error")
    elif isinstance(data, DocumentsSettings):
        records = _read_documents(data, split, paths)
    else:
        records = _read_tfds(data, split, data_dir)
    first = next(records, None)
    if first is None:
        place = ", ".join(map(str, paths.values())) or f"{data.name}, {getattr(data, split)}"
        share = " in this share; raise it" if split in getattr(data, "shares", {}) else ""
        raise UserError(f"{place}: holds no records{share}; data.{split} needs at least one")
    yield first
    yield from records
