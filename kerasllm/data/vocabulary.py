"""What turns texts into numbers and back: the tokenizer, and the names of the labels. Both are learnt from `train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import atomic_directory, atomic_write_bytes, sha256_of_file

if TYPE_CHECKING:
    import tensorflow as tf

    from kerasllm.data.tokenizers import Tokenizer

TOKENIZER = "tokenizer"
LABELS = "labels.json"


@dataclass(frozen=True)
class Vocabulary:
    """Learnt by `prepare`, and kept in the run.

    Args:
        tokenizer: None for a task without text.
        labels: the names of the labels in the order of their numbers, from 0; empty for a task without labels.
    """

    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()

    def number_labels(self, names: tf.Tensor) -> tf.Tensor:
        """Names of labels, string of any shape -> int32 of that shape, their numbers from 0; -1 for one not known."""
        import tensorflow as tf

        initializer = tf.lookup.KeyValueTensorInitializer(
            tf.constant(self.labels), tf.range(len(self.labels), dtype=tf.int32)
        )
        return tf.lookup.StaticHashTable(initializer, default_value=-1).lookup(names)

    def name_labels(self, numbers: tf.Tensor) -> tf.Tensor:
        """The opposite of `number_labels`, as a graph operation that can be exported."""
        import tensorflow as tf

        return tf.gather(tf.constant(self.labels), numbers)


def learn_labels(names: Iterable[str], directory: Path) -> tuple[str, ...]:
    """The different names in alphabetical order, written into a directory."""
    labels = tuple(sorted(set(names)))
    (directory / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return labels


def check_labels(labels: tuple[str, ...], records: Iterable[Iterable[str]], describe: Callable[[int], str]) -> None:
    """Raise `UserError` at the first record of a split with a label that training does not have.

    Args:
        describe: number of a record, from 1 -> what an error about it begins with.
    """
    known = set(labels)
    for number, names in enumerate(records, start=1):
        for name in names:
            if name not in known:
                raise UserError(
                    f"{describe(number)}: label '{name}' does not occur in data.train; {did_you_mean(name, labels)}"
                )


def vocabulary_hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file of the vocabulary that lies in a prepared directory, or in a run."""
    files = [*sorted((directory / TOKENIZER).glob("*")), directory / LABELS]
    return {file.name: sha256_of_file(file) for file in files if file.is_file()}


def copy_vocabulary(source: Path, target: Path) -> None:
    """Copies what `load_vocabulary` reads from a prepared directory into a run."""
    if (source / TOKENIZER).exists():
        with atomic_directory(target / TOKENIZER, replace=True) as unfinished:
            shutil.copytree(source / TOKENIZER, unfinished, dirs_exist_ok=True)
    if (source / LABELS).exists():
        atomic_write_bytes(target / LABELS, (source / LABELS).read_bytes())


def load_vocabulary(directory: Path) -> Vocabulary:
    """Reads what lies in a prepared directory, or in a run.

    Raises:
        UserError: a file is missing or damaged.
    """
    tokenizer = None
    if (directory / TOKENIZER).exists():
        from kerasllm.data.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(directory / TOKENIZER)
    path = directory / LABELS
    try:
        labels = json.loads(path.read_text(encoding="utf-8")) if path.exists() else ()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); take it from a copy of the run, or train again") from error
    return Vocabulary(tokenizer, tuple(labels))
