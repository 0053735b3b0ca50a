"""From somebody's questions, in the json of SQuAD, to a recipe that trains a reader on them."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from kerasllm.data.cleaning import build_cleaner
from kerasllm.data.sources import read_records
from kerasllm.data.squad import count_articles, read_answers, read_squad
from kerasllm.errors import UserError
from kerasllm.first_recipes.choices import PRETRAINED_EPOCHS, PRETRAINED_RATE, describe_pretrained, name_file
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import atomic_write_text
from kerasllm.terminal import say, show_table

HELD_OUT_SHARE = 0.1
"""Of the articles, for each of validation and test."""
BATCH_SIZE = 16
TEMPLATE = """\
# Answers questions by parts of the texts in {name}.
# command: kerasllm train {to} --run-dir runs/{stem}
# Made by `kerasllm new` from what the file holds; change what you like. All settings there are, with their defaults,
# stand in runs/{stem}/recipe.yaml once it was trained.
task: answer
seed: 1

data:
  source: squad
  # Relative to where the command is typed, or to --data-dir. Articles are counted from 0, up to the second bound.
  train: {{file: {file}, articles: "0:{validation_start}"}}
  # One part chooses the best weights, and `kerasllm evaluate` measures on the other. Give files if you have them.
  validation: {{file: {file}, articles: "{validation_start}:{test_start}"}}
  test: {{file: {file}, articles: "{test_start}:"}}
  # An answer that its context does not have: drop the question from training, and count it, or error.
  on_missing_answer: drop

# Contexts longer than the model are read in windows, each so many tokens after the one before.
answering:
  window_stride: 128
  max_answer_tokens: 30
  # Whether "" may be the answer; a higher threshold gives it less often.
  allow_none: {allow_none}
  none_threshold: 0.0

batching: {{global_batch_size: {batch_size}, max_sequence_length: 384}}

{model}
training:
  train_epochs: {epochs}
  peak_learning_rate: {rate}
  schedule: {{name: linear, warmup_steps: {warmup}}}
  optimizer: {{weight_decay: 0.01}}
  clip_norm: 1.0
  evaluate_every_epochs: 1
  best_metric: f1
"""
FROM_SCRATCH = """\
# From these questions alone little is learnt: `kerasllm new` with --pretrained begins with published weights instead.
tokenizer: {kind: wordpiece, max_vocabulary_size: 8000, lowercase: true}
model: {num_layers: 2, num_heads: 4, hidden_dim: 128, intermediate_dim: 256, max_sequence_length: 384}
"""
SCRATCH_EPOCHS, SCRATCH_RATE = 10, 0.0005


def new_reader(file: Path, to: Path, pretrained: str | None = None) -> dict[str, Any]:
    """Look at questions, and write a commented recipe for a reader.

    Args:
        file: in the json of SQuAD.
        to: the recipe, which does not exist.
        pretrained: published weights to begin with, as in `PretrainedBertSettings`.

    Returns:
        `recipe`, `articles`, `questions`, `without_answer`, and `splits` (records by split).

    Raises:
        UserError: the file cannot be read, or has too few articles.
    """
    num_articles = count_articles(file)
    if num_articles < 3:
        raise UserError(
            f"{file}: has {num_articles} articles; three are needed, to learn from, to choose by and to measure on: "
            "spread its paragraphs over more, or write a recipe with three files"
        )
    asked = Counter(bool(read_answers(record["answers"])) for record in read_squad(file))
    write = partial(write_recipe, file, to, num_articles, bool(asked[False]), pretrained)
    atomic_write_text(to, write(num_train=asked.total()))
    try:
        splits = count_records(load_recipe(to))
        # Once more, because the steps follow from the records that are left to train on.
        atomic_write_text(to, write(num_train=splits["train"]))
    except BaseException:
        to.unlink()
        raise
    report = {
        "recipe": str(to),
        "articles": num_articles,
        "questions": asked.total(),
        "without_answer": asked[False],
        "splits": splits,
    }
    show(file, report)
    return report


def write_recipe(
    file: Path, to: Path, num_articles: int, allow_none: bool, pretrained: str | None, num_train: int
) -> str:
    """The recipe, with the last articles held out."""
    held_out = max(1, round(HELD_OUT_SHARE * num_articles))
    epochs = PRETRAINED_EPOCHS if pretrained else SCRATCH_EPOCHS
    return TEMPLATE.format(
        name=" ".join(file.name.split()),
        to=to,
        stem=to.stem,
        file=name_file(file),
        validation_start=num_articles - 2 * held_out,
        test_start=num_articles - held_out,
        allow_none=json.dumps(allow_none),
        batch_size=BATCH_SIZE,
        model=describe_pretrained(pretrained) if pretrained else FROM_SCRATCH,
        epochs=epochs,
        rate=PRETRAINED_RATE if pretrained else SCRATCH_RATE,
        warmup=max(1, math.ceil(num_train / BATCH_SIZE) * epochs // 10),
    )


def count_records(recipe: Recipe) -> dict[str, int]:
    """What cleaning leaves of each split."""
    cleaner = build_cleaner(recipe.cleaning, recipe.task_class)
    for split in reversed(recipe.data.splits):
        for _ in cleaner.clean(split, read_records(recipe.data, split)):
            pass
    return {split: cleaner.report[split].kept for split in recipe.data.splits}


def show(file: Path, report: dict[str, Any]) -> None:
    """What was found, as a table."""
    rows = [
        ("articles", f"{report['articles']:,}"),
        ("questions", f"{report['questions']:,}, {report['without_answer']:,} of them without an answer"),
        ("records", ", ".join(f"{split} {count:,}" for split, count in report["splits"].items())),
    ]
    show_table(f"new: {file}", ("", ""), rows)
    say(f"new: {report['recipe']} is written")
