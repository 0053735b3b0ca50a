"""From somebody's file with tagged words, as CoNLL writes them, to a recipe that trains a tagger on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kerasllm.data.cleaning import build_cleaner
from kerasllm.data.conll import ConllFile, look_at
from kerasllm.data.sources import read_records
from kerasllm.errors import UserError
from kerasllm.first_recipes.choices import (
    AIMED_STEPS,
    BATCH_SIZE,
    EPOCHS,
    MANY_RECORDS,
    PRETRAINED_EPOCHS,
    SHARES,
    clip,
    describe_model,
    length_for,
    name_file,
)
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import atomic_write_text
from kerasllm.terminal import say, show_table

PRETRAINED_RATE = 0.0001
"""A smaller one leaves the head, which begins at random, behind in so few epochs."""
TEMPLATE = """\
# Finds {types} in the sentences of {file_name}.
# command: kerasllm train {to} --run-dir runs/{name}
# Made by `kerasllm new` from what the file holds; change what you like. All settings there are, with their defaults,
# stand in runs/{name}/recipe.yaml once it was trained.
task: tag
seed: 1

data:
  source: conll
  # Relative to where the command is typed, or to --data-dir.
  train: {file}
  # Shares of the file, by the words of each sentence: one chooses the best weights, and `kerasllm evaluate` measures on
  # the other. Name files instead if you have them.
  validation: {validation}
  test: {test}
  # Columns count from 0, and from -1 backwards. The scheme is how the file writes entities down: iob1, bio or bioes.
  columns: {{words: 0, tags: -1}}
  scheme: {scheme}

# Sentences may be short and come again; those that are longer than the model takes are cut, and not dropped.
cleaning: {{max_characters: 100000, drop_duplicates: false, drop_leaks: false}}

batching: {{global_batch_size: {batch_size}, max_sequence_length: {length}}}

{model}
# softmax chooses each tag by itself; crf those of a sentence together. Where the tokenizer turns texts to lower case,
# `capitals` tells the model which words begin with one. Hugging Face's layout has no place for either.
tagging: {{decoder: softmax, capitals: true}}

training:
  train_epochs: {epochs}
  peak_learning_rate: {rate}
  schedule: {{name: linear, warmup_steps: {warmup}}}
  clip_norm: 1.0
  evaluate_every_epochs: {every}
  best_metric: f1
"""


def new_tagger(file: Path, to: Path, pretrained: str | None = None) -> dict[str, Any]:
    """Look at a file with tagged words, and write a commented recipe for a tagger.

    Args:
        file: words in the first column, tags in the last one; plain or .gz.
        to: the recipe, which does not exist.
        pretrained: published weights to begin with, as in `PretrainedBertSettings`.

    Returns:
        `recipe`, `task`, `scheme`, `entities` (how many there are of each type) and `splits` (sentences by split).

    Raises:
        UserError: the file cannot be read, a tag or a line is wrong, or a type is too rare to be in every split.
    """
    found = look_at(file)
    atomic_write_text(to, write_recipe(file, found, len(found.lengths), to, pretrained))
    try:
        splits = count_sentences(load_recipe(to))
        # Once more, because the steps follow from the sentences that are left to train on.
        atomic_write_text(to, write_recipe(file, found, splits["train"], to, pretrained))
    except BaseException:
        to.unlink()
        raise
    entities = dict(found.entities.most_common())
    shown = [f"{type_} ({count:,})" for type_, count in entities.items()]
    rows = [
        ("scheme", found.scheme),
        ("entities", ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if shown[10:] else "")),
        ("sentences", ", ".join(f"{split} {count:,}" for split, count in splits.items())),
    ]
    show_table(f"new: {file}", ("", ""), rows)
    say(f"new: {to} is written; a word is the first column of a line, its tag the last one")
    return {"recipe": str(to), "task": "tag", "scheme": found.scheme, "entities": entities, "splits": splits}


def write_recipe(file: Path, found: ConllFile, num_train: int, to: Path, pretrained: str | None) -> str:
    """The recipe, with sizes that suit the number and the length of the sentences."""
    steps, is_large = math.ceil(num_train / BATCH_SIZE), num_train >= MANY_RECORDS
    epochs = PRETRAINED_EPOCHS if pretrained else clip(math.ceil(AIMED_STEPS / steps), EPOCHS)
    length = length_for(found.lengths)
    return TEMPLATE.format(
        types=", ".join(type_ for type_, _ in found.entities.most_common(5)),
        file_name=file.name,
        to=to,
        name=to.stem,
        file=name_file(file),
        **SHARES,
        scheme=found.scheme,
        batch_size=BATCH_SIZE,
        length=length,
        model=describe_model(pretrained, is_large, length, tokenizer="wordpiece"),
        epochs=epochs,
        rate=PRETRAINED_RATE if pretrained else 0.0005 if is_large else 0.001,
        warmup=max(1, steps * epochs // 10),
        every=max(1, epochs // 10),
    )


def count_sentences(recipe: Recipe) -> dict[str, int]:
    """The sentences of each split, in what cleaning leaves of them.

    Raises:
        UserError: a type does not occur in training, or a split has no sentence.
    """
    cleaner, tags = build_cleaner(recipe.cleaning, recipe.task_class), {}
    for split in reversed(recipe.data.splits):
        records = cleaner.clean(split, read_records(recipe.data, split))
        tags[split] = {tag for record in records for tag in recipe.task_class.labels_in(recipe, record["tags"])}
    for tag in sorted(set().union(*tags.values()) - tags["train"]):
        raise UserError(
            f"{recipe.data.train}: '{tag}' occurs in no sentence of the share to train on, too rarely to be learnt and "
            "measured; add some, or take it out"
        )
    return {split: cleaner.report[split].kept for split in recipe.data.splits}
