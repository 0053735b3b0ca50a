"""From the sources of a recipe to examples on disk. What was prepared before is found again without TensorFlow."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kerasllm.data.cleaning import Cleaner, CleaningReport, format_report
from kerasllm.data.settings import (
    BUILT_IN_FIELDS,
    BuiltInSettings,
    CleaningSettings,
    DataSettings,
    ParallelTextSettings,
    TokenizerSettings,
)
from kerasllm.data.sources import Record, read_records, source_fingerprint
from kerasllm.data.store import MANIFEST, Prepared, RaggedTexts, RaggedWriter, feature_path, text_path
from kerasllm.environment import load_tensorflow
from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import atomic_directory
from kerasllm.terminal import progress

if TYPE_CHECKING:
    from kerasllm.data.tokenizers import Tokenizer

FORMAT_VERSION = 1
"""Raise it when the same sources and settings come to give other files."""
_CHUNK_RECORDS = 1024


class Recipe(Protocol):
    """What is read of a recipe."""

    task: str
    task_class: Any
    """Its `fields` are what a record must have; `needs_tokenizer` says whether they are text."""
    data: DataSettings
    cleaning: CleaningSettings
    tokenizer: TokenizerSettings


Encode = Callable[["Tokenizer | None", dict[str, Any]], dict[str, Any]]


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
        "source": source_fingerprint(recipe.data, data_dir),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def check_fields(data: DataSettings, fields: Sequence[str]) -> None:
    """Raise `UserError` unless the recipe says where exactly the fields of the task come from."""
    if isinstance(data, BuiltInSettings):
        if BUILT_IN_FIELDS[data.name] != tuple(fields):
            known = ", ".join(BUILT_IN_FIELDS[data.name])
            raise UserError(f"data.name: {data.name} has {known}, but the task needs {', '.join(fields)}")
        return
    section, found = ("train", data.train) if isinstance(data, ParallelTextSettings) else ("columns", data.columns)
    for field in found:
        if field not in fields:
            raise UserError(f"data.{section}.{field}: the task knows no such field; {did_you_mean(field, fields)}")
    for field in fields:
        if field not in found:
            raise UserError(f"data.{section}.{field}: is missing; the task needs {', '.join(fields)}")


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, _CHUNK_RECORDS)):
        yield chunk


def _write_texts(
    directory: Path, data: DataSettings, cleaning: CleaningSettings, fields: Sequence[str], data_dir: Path | None
) -> CleaningReport:
    """Read and clean every split, `train` last, and store its texts."""
    cleaner = Cleaner(cleaning)
    for split in reversed(data.splits):
        with ExitStack() as stack:
            writers = {
                field: stack.enter_context(RaggedWriter(text_path(directory, split, field), "uint8"))
                for field in fields
            }
            bar = stack.enter_context(progress(f"read and clean {split}", unit="records"))
            for chunk in _chunks(cleaner.clean(split, read_records(data, split, data_dir))):
                for field, writer in writers.items():
                    writer.append_texts(record[field] for record in chunk)
                bar.advance(len(chunk))
    if cleaner.report["train"].kept == 0:
        report = format_report({"train": cleaner.report.as_dict()["train"]}).replace("\n", "; ")
        raise UserError(f"data.train: cleaning leaves no record; look at the section `cleaning` ({report})")
    return cleaner.report


def _sample(texts: list[RaggedTexts], max_texts: int) -> Iterator[str]:
    """At most `max_texts` of all texts, spread evenly, in order."""
    step = -(-sum(map(len, texts)) // max_texts)
    return islice(chain.from_iterable(texts), 0, None, step)


def _train_tokenizer(
    directory: Path, cleaning: CleaningSettings, settings: TokenizerSettings, fields: Sequence[str]
) -> "Tokenizer":
    from kerasllm.data.tokenizers import train_tokenizer

    def counted(texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            bar.advance(1)
            yield text

    texts = [RaggedTexts(text_path(directory, "train", field)) for field in fields]
    with progress(f"learn {settings.kind}", unit="texts") as bar:
        sample = counted(_sample(texts, settings.max_training_sentences))
        return train_tokenizer(settings, cleaning, sample, directory / "tokenizer")


def _write_features(
    directory: Path, split: str, fields: Sequence[str], encode: Encode, tokenizer: "Tokenizer | None"
) -> list[str]:
    """Tokenize the stored texts of a split and store the features; returns their names."""
    import tensorflow as tf

    texts = [RaggedTexts(text_path(directory, split, field)) for field in fields]
    writers: dict[str, RaggedWriter] = {}
    with ExitStack() as stack, progress(f"tokenize {split}", total=len(texts[0]), unit="records") as bar:
        for columns in zip(*(each.chunks(_CHUNK_RECORDS) for each in texts), strict=True):
            columns = dict(zip(fields, map(tf.constant, columns), strict=True))
            features = encode(tokenizer, columns)
            for name, rows in features.items():
                if name not in writers:
                    writers[name] = stack.enter_context(RaggedWriter(feature_path(directory, split, name), "int32"))
                writers[name].append(rows.flat_values.numpy(), rows.row_lengths().numpy())
            bar.advance(len(rows.row_lengths()))
    return list(writers)


def _write_prepared(directory: Path, recipe: Recipe, encode: Encode, data_dir: Path | None) -> None:
    data, fields = recipe.data, recipe.task_class.fields
    report = _write_texts(directory, data, recipe.cleaning, fields, data_dir)
    load_tensorflow()
    tokenizer = None
    if recipe.task_class.needs_tokenizer:
        tokenizer = _train_tokenizer(directory, recipe.cleaning, recipe.tokenizer, fields)
    for split in data.splits:
        features = _write_features(directory, split, fields, encode, tokenizer)
    manifest = {
        "splits": {split: report[split].kept for split in data.splits},
        "fields": list(fields),
        "features": features,
        "vocabulary_size": tokenizer and tokenizer.vocabulary_size,
        "cleaning": {split: report.as_dict()[split] for split in data.splits},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare_data(recipe: Recipe, encode: Encode, data_dir: Path | str | None = None) -> Prepared:
    """Give the prepared examples of a recipe, from the cache if this very content was prepared before.

    Read and clean -> store the texts -> learn the tokenizer from those of the training split alone -> store the token
    ids. Everything is streamed: memory does not grow with the corpus.

    Args:
        encode: of the recipe's task; `encode(tokenizer, field -> string [B])` gives feature -> int32 ragged [B, None];
            the tokenizer is None for a task that needs none.
        data_dir: what file names are relative to; the working directory if None.

    Raises:
        UserError: bad input, see `read_records`; no record left; disk full. Nothing half-written remains.
    """
    data_dir = None if data_dir is None else Path(data_dir)
    check_fields(recipe.data, recipe.task_class.fields)
    directory = cache_directory() / preparation_key(recipe, data_dir)
    is_new = not directory.exists()
    if is_new:
        try:
            with atomic_directory(directory) as unfinished:
                _write_prepared(unfinished, recipe, encode, data_dir)
        except UserError:
            if not directory.exists():
                raise
            # Another process has prepared the same meanwhile; its files are as good.
    return Prepared(directory, from_cache=not is_new)
