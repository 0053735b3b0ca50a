"""From the sources of a recipe to examples on disk. What was prepared before is found again without TensorFlow."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kerasllm.data.cleaning import Cleaner, CleaningReport, build_cleaner, format_report
from kerasllm.data.published import fingerprint, tokenizer_of_run
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import (
    BuiltInSettings,
    DataSettings,
    DocumentsSettings,
    IdxSettings,
    NoDataSettings,
    ParallelTextSettings,
    PicturesSettings,
    SquadSettings,
)
from kerasllm.data.sources import Record, read_records, source_files, source_fingerprint
from kerasllm.data.store import (
    MANIFEST,
    RECORD,
    Prepared,
    RaggedTexts,
    RaggedWriter,
    feature_path,
    stored_field,
    text_path,
)
from kerasllm.data.vocabulary import TOKENIZER, Vocabulary, check_labels, learn_labels
from kerasllm.environment import load_tensorflow
from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import atomic_directory, sha256_of_directory
from kerasllm.terminal import progress

if TYPE_CHECKING:
    from kerasllm.data.tokenizers import Tokenizer

FORMAT_VERSION = 3
"""Raise it when the same sources and settings come to give other files."""
_CHUNK_RECORDS = 1024
_SHOWN_CHARACTERS = 40
_TRACED_FROM_RECORDS = 20 * _CHUNK_RECORDS


class Recipe(Protocol):
    """What is read of a recipe."""

    task: str
    task_class: Any
    """A class of `tasks/`, of which `task.Task` says what it must have."""
    data: DataSettings
    cleaning: CleaningSettings
    tokenizer: TokenizerSettings


def cache_directory() -> Path:
    """Where prepared examples lie: `$KERASLLM_CACHE/prepared`, without the variable `~/.cache/kerasllm/prepared`."""
    return Path(os.environ.get("KERASLLM_CACHE") or "~/.cache/kerasllm").expanduser() / "prepared"


def preparation_key(recipe: Recipe, data_dir: Path | None) -> str:
    """A hexadecimal hash of everything that the prepared examples depend on, file contents included."""
    parts = {
        "format": FORMAT_VERSION,
        "task": recipe.task,
        "data": recipe.data.model_dump(),
        "cleaning": recipe.cleaning.model_dump(),
        "tokenizer": recipe.tokenizer.model_dump(),
        "encoding": recipe.task_class.encoding_settings(recipe),
        "source": source_fingerprint(recipe.data, data_dir),
    }
    if recipe.tokenizer.vocabulary is not None:
        parts["vocabulary"] = fingerprint(recipe.tokenizer.vocabulary, data_dir)
    if recipe.tokenizer.run is not None:
        parts["tokenizer_of_run"] = sha256_of_directory(tokenizer_of_run(recipe.tokenizer.run, data_dir))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def find_fields(data: DataSettings, task_class: Any) -> tuple[str, ...]:
    """The fields of the records: those that the task needs, and of its optional ones those that the recipe names.

    Raises:
        UserError: the recipe does not say where a field comes from, or names one that the task does not know.
    """
    needed, known = task_class.fields, (*task_class.fields, *task_class.optional_fields)
    found = data.fields
    if isinstance(data, NoDataSettings):
        return ()
    if isinstance(data, BuiltInSettings | SquadSettings | PicturesSettings | IdxSettings):
        if not set(needed) <= set(found) <= set(known):
            place, name = ("name", data.name) if isinstance(data, BuiltInSettings) else ("source", data.source)
            raise UserError(f"data.{place}: {name} has {', '.join(found)}, but the task needs {', '.join(needed)}")
        return tuple(field for field in known if field in found)
    if isinstance(data, DocumentsSettings) and set(found) != set(needed):
        raise UserError(f"data.source: documents have {', '.join(found)}, but the task needs {', '.join(needed)}")
    section = "train" if isinstance(data, ParallelTextSettings) else "columns"
    for field in found:
        if field not in known:
            raise UserError(f"data.{section}.{field}: the task knows no such field; {did_you_mean(field, known)}")
    for field in needed:
        if field not in found:
            raise UserError(f"data.{section}.{field}: is missing; the task needs {', '.join(needed)}")
    return tuple(field for field in known if field in found)


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, _CHUNK_RECORDS)):
        yield chunk


def _read_split(recipe: Recipe, split: str, data_dir: Path | None) -> Iterator[Record]:
    """The records of a split as the task reads them."""
    for number, record in enumerate(read_records(recipe.data, split, data_dir), start=1):
        try:
            yield recipe.task_class.read_record(recipe, record)
        except UserError as error:
            files = "".join(f"{path}: " for path in source_files(recipe.data, split, data_dir).values())
            raise UserError(f"{files}data.{split}: record {number}: {error}") from error


def _check_records(recipe: Recipe, split: str, cleaner: Cleaner, records: Iterator[Record]) -> Iterator[Record]:
    """The cleaned records of a split, after the task has looked at each."""
    for record in records:
        try:
            recipe.task_class.check_record(recipe, record)
        except UserError as error:
            raise UserError(f"data.{split}: record {cleaner.report[split].read}: {error}") from error
        yield record


def _write_texts(directory: Path, recipe: Recipe, fields: Sequence[str], data_dir: Path | None) -> CleaningReport:
    """Read and clean every split, `train` last, and store its texts."""
    data = recipe.data
    cleaner = build_cleaner(recipe.cleaning, recipe.task_class)
    for split in reversed(data.splits):
        with ExitStack() as stack:
            writers = {
                field: stack.enter_context(RaggedWriter(text_path(directory, split, field), "uint8"))
                for field in fields
            }
            bar = stack.enter_context(progress(f"read and clean {split}", unit="records"))
            records = cleaner.clean(split, _read_split(recipe, split, data_dir))
            for chunk in _chunks(_check_records(recipe, split, cleaner, records)):
                for field, writer in writers.items():
                    writer.append_texts(record[field] for record in chunk)
                bar.advance(len(chunk))
    if data.splits and cleaner.report["train"].kept == 0:
        report = format_report({"train": cleaner.report.as_dict()["train"]}).replace("\n", "; ")
        raise UserError(f"data.train: cleaning leaves no record; look at the section `cleaning` ({report})")
    return cleaner.report


def _sample(texts: list[RaggedTexts], max_texts: int) -> Iterator[str]:
    """At most `max_texts` of all texts, spread evenly, in order."""
    step = max(1, -(-sum(map(len, texts)) // max_texts))
    return islice(chain.from_iterable(texts), 0, None, step)


def _train_tokenizer(
    directory: Path,
    cleaning: CleaningSettings,
    settings: TokenizerSettings,
    fields: Sequence[str],
    data_dir: Path | None,
    with_mask: bool,
) -> "Tokenizer":
    from kerasllm.data.tokenizer_training import train_tokenizer

    def counted(texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            bar.advance(1)
            yield text

    texts = [stored_field(directory, "train", field) for field in fields]
    with progress(f"learn {settings.kind}", unit="texts") as bar:
        sample = counted(_sample(texts, settings.max_training_sentences))
        return train_tokenizer(settings, cleaning, sample, directory / TOKENIZER, data_dir, with_mask)


def _describe(
    directory: Path, recipe: Recipe, split: str, fields: Sequence[str], data_dir: Path | None, number: int
) -> str:
    """What an error about a stored record begins with: its file, split and number, and how its first text begins."""
    files = "".join(f"{path}: " for path in source_files(recipe.data, split, data_dir).values())
    field = next((field for field in fields if field in recipe.task_class.text_fields), None)
    text = f" ('{stored_field(directory, split, field)[number - 1][:_SHOWN_CHARACTERS]}')" if field else ""
    return f"{files}data.{split}: record {number}{text}"


def _learn_labels(directory: Path, recipe: Recipe, fields: Sequence[str], data_dir: Path | None) -> tuple[str, ...]:
    """Number the labels of the training split, and make sure that the others have no others."""
    task_class = recipe.task_class

    def describe(split: str, number: int) -> str:
        return _describe(directory, recipe, split, fields, data_dir, number)

    def labels_of(split: str) -> Iterator[list[str]]:
        texts = stored_field(directory, split, task_class.label_field)
        for number, text in enumerate(texts, start=1):
            try:
                yield task_class.labels_in(recipe, text)
            except UserError as error:
                raise UserError(f"{describe(split, number)}: {error}") from error

    labels = learn_labels(chain.from_iterable(labels_of("train")), directory)
    for split in recipe.data.splits:
        check_labels(labels, labels_of(split), partial(describe, split))
    return labels


def _learn_vocabulary(directory: Path, recipe: Recipe, fields: Sequence[str], data_dir: Path | None) -> Vocabulary:
    """The tokenizer and the labels of the training split, as far as the task needs them."""
    task_class, tokenizer, labels = recipe.task_class, None, ()
    if task_class.label_field in fields:
        labels = _learn_labels(directory, recipe, fields, data_dir)
    texts = [field for field in fields if field in task_class.text_fields]
    if texts or (isinstance(recipe.data, NoDataSettings) and task_class.text_fields):
        with_mask = task_class.needs_mask
        tokenizer = _train_tokenizer(directory, recipe.cleaning, recipe.tokenizer, texts, data_dir, with_mask)
    return Vocabulary(tokenizer, labels)


def _encoder(task: Any, fields: Sequence[str], num_records: int) -> Callable[..., dict[str, Any]]:
    """`task.encode`; as a graph, where it can be one and there are enough records for the second that this takes."""
    import tensorflow as tf

    if not task.encodes_as_graph or num_records < _TRACED_FROM_RECORDS:
        return task.encode
    signature = {field: tf.TensorSpec([None], tf.string, name=field) for field in fields}
    return tf.function(task.encode, input_signature=[signature], autograph=False)


def _encode_chunks(
    encode: Callable[..., dict[str, Any]], fields: Sequence[str], chunks: Iterator[tuple[list[str], ...]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of records and the features of each chunk of texts, in order; as many chunks are worked on at a time
    as there are cores, and no more are read ahead."""
    import tensorflow as tf

    def encode_chunk(columns: tuple[list[str], ...]) -> tuple[int, dict[str, Any]]:
        return len(columns[0]), encode(dict(zip(fields, map(tf.constant, columns), strict=True)))

    num_cores = os.cpu_count() or 1
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(num_cores) as pool:
        for columns in chunks:
            waiting.append(pool.submit(encode_chunk, columns))
            if len(waiting) > num_cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_features(
    directory: Path, split: str, fields: Sequence[str], encode: Callable[..., dict[str, Any]]
) -> dict[str, str]:
    """Turn the stored texts of a split into features and store these; returns their names and types."""
    texts = [stored_field(directory, split, field) for field in fields]
    chunks = zip(*(each.chunks(_CHUNK_RECORDS) for each in texts), strict=True)
    writers: dict[str, RaggedWriter] = {}
    num_records = 0
    with ExitStack() as stack, progress(f"encode {split}", total=len(texts[0]), unit="records") as bar:
        for size, features in _encode_chunks(encode, fields, chunks):
            if RECORD in features:
                features[RECORD] += num_records
            num_records += size
            for name, rows in features.items():
                if name not in writers:
                    writer = RaggedWriter(feature_path(directory, split, name), rows.dtype.name)
                    writers[name] = stack.enter_context(writer)
                writers[name].append(rows.flat_values.numpy(), rows.row_lengths().numpy())
            bar.advance(size)
    return {name: rows.dtype.name for name, rows in features.items()}


def _write_prepared(directory: Path, recipe: Recipe, data_dir: Path | None) -> None:
    data, fields = recipe.data, find_fields(recipe.data, recipe.task_class)
    report = _write_texts(directory, recipe, fields, data_dir)
    load_tensorflow()
    vocabulary = _learn_vocabulary(directory, recipe, fields, data_dir)
    task, features = recipe.task_class(recipe, vocabulary), {}
    encode = _encoder(task, fields, sum(report[split].kept for split in data.splits))
    for split in data.splits:
        features = _write_features(directory, split, fields, encode)
    manifest = {
        "splits": {split: report[split].kept for split in data.splits},
        "fields": list(fields),
        "features": features,
        "vocabulary_size": vocabulary.tokenizer and vocabulary.tokenizer.vocabulary_size,
        "num_labels": len(vocabulary.labels),
        "cleaning": {split: report.as_dict()[split] for split in data.splits},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare_data(recipe: Recipe, data_dir: Path | str | None = None) -> Prepared:
    """Give the prepared examples of a recipe, from the cache if this very content was prepared before.

    Read and clean -> store the texts -> learn the tokenizer from those of the training split alone -> store the token
    ids. Everything is streamed: memory does not grow with the corpus.

    Args:
        data_dir: what file names are relative to; the working directory if None.

    Raises:
        UserError: bad input, see `read_records`; no record left; a label that training lacks; disk full. Nothing
            half-written remains.
    """
    data_dir = None if data_dir is None else Path(data_dir)
    find_fields(recipe.data, recipe.task_class)
    if isinstance(recipe.data, NoDataSettings) and recipe.tokenizer.vocabulary is recipe.tokenizer.run is None:
        raise UserError("data.source: none gives no text to learn a tokenizer from; name model.pretrained, or data")
    directory = cache_directory() / preparation_key(recipe, data_dir)
    is_new = not directory.exists()
    if is_new:
        try:
            with atomic_directory(directory) as unfinished:
                _write_prepared(unfinished, recipe, data_dir)
        except UserError:
            if not directory.exists():
                raise
            # Another process has prepared the same meanwhile; its files are as good.
    return Prepared(directory, from_cache=not is_new)
