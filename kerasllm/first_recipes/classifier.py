"""From somebody's table of texts and labels to a recipe that trains a classifier on it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from kerasllm.data.cleaning import build_cleaner
from kerasllm.data.columns import (
    Column,
    find_column,
    guess_kind,
    guess_label,
    guess_texts,
    read_columns,
)
from kerasllm.data.sources import read_records
from kerasllm.errors import UserError
from kerasllm.first_recipes.choices import (
    AIMED_STEPS,
    BATCH_SIZE,
    EPOCHS,
    MANY_RECORDS,
    PRETRAINED_EPOCHS,
    PRETRAINED_RATE,
    SHARES,
    as_yaml,
    clip,
    describe_model,
    length_for,
    name_file,
)
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import atomic_write_text
from kerasllm.terminal import say, show_table

TEMPLATE = """\
# {purpose}
# command: kerasllm train {to} --run-dir runs/{name}
# Made by `kerasllm new` from what the table holds; change what you like. All settings there are, with their defaults,
# stand in runs/{name}/recipe.yaml once it was trained.
task: classify_text
seed: 1

data:
  source: table
  # Relative to where the command is typed, or to --data-dir.
  train: {file}
  # Shares of the table: one chooses the best weights, and `kerasllm evaluate` measures on the other.
  validation: {validation}
  test: {test}
  columns: {columns}

# What the label is: one_label of several, several_labels with a separator between them, or a number.
classification: {classification}

# Longer texts than the model takes are cut, and not dropped.
cleaning: {{max_characters: 100000}}

batching: {{global_batch_size: {batch_size}, max_sequence_length: {length}}}

{model}
training:
  train_epochs: {epochs}
  peak_learning_rate: {rate}
  schedule: {{name: linear, warmup_steps: {warmup}}}
  clip_norm: 1.0
  evaluate_every_epochs: {every}
  best_metric: loss
"""


def new_classifier(
    table: Path, to: Path, text: str | None, other_text: str | None, label: str | None, pretrained: str | None
) -> dict[str, Any]:
    """Look at a table, and write a commented recipe for a classifier of its texts.

    Args:
        table: csv, tsv, jsonl or parquet.
        to: the recipe, which does not exist.
        text, other_text, label: columns; what is left out is guessed from the names and the cells.
        pretrained: trained weights to begin with, as in `PretrainedBertSettings`.

    Returns:
        `recipe`, `text`, `other_text`, `label` (columns), `kind` (see `ClassificationSettings`), `labels` (how often
        each occurs) and `splits` (records by split).

    Raises:
        UserError: the table cannot be read, has no such column, no text or only one label, or a label is too rare to be
            in every split.
    """
    columns, num_rows = read_columns(table)
    named = find_column(table, columns, "--label", label) if label else guess_label(table, columns)
    texts = [find_column(table, columns, "--text", text)] if text else guess_texts(table, columns, named.name)
    if other_text:
        texts = [texts[0], find_column(table, columns, "--other-text", other_text)]
    fields = dict(zip(("text", "other_text"), texts, strict=False))
    kind, separator = guess_kind(named)
    check_label(table, named, kind)
    write = partial(write_recipe, table, to=to, fields=fields, label=named, kind=kind, separator=separator)
    atomic_write_text(to, write(num_train=num_rows, pretrained=pretrained))
    try:
        labels, splits = count_labels(load_recipe(to))
        # Once more, because the steps follow from the records that the cleaning leaves to train on.
        atomic_write_text(to, write(num_train=splits["train"], pretrained=pretrained))
    except BaseException:
        to.unlink()
        raise
    found = {"recipe": str(to), **{field: column.name for field, column in fields.items()}, "label": named.name}
    report = {**found, "kind": kind, "labels": dict(labels.most_common()), "splits": splits}
    show(table, report, [name for name in columns if name not in found.values()])
    return report


def check_label(table: Path, label: Column, kind: str) -> None:
    """Raise `UserError` for a column that nothing can be learnt from."""
    counts = label.counts
    if len(counts) < 2:
        only = f"one label only, '{next(iter(counts))}'" if counts else "nothing"
        raise UserError(f"{table}: column '{label.name}' holds {only}; there must be two to choose from")
    if kind == "one_label" and len(counts) > len(label.cells) // 2:
        raise UserError(
            f"{table}: column '{label.name}' has {len(counts):,} different values in {len(label.cells):,} rows, too "
            "many for a label; name another one with --label"
        )


def write_recipe(
    table: Path,
    num_train: int,
    to: Path,
    fields: dict[str, Column],
    label: Column,
    kind: str,
    separator: str,
    pretrained: str | None,
) -> str:
    """The recipe, with sizes that suit the number and the length of the records."""
    classification: dict[str, Any] = {"kind": kind}
    if kind == "several_labels":
        classification["separator"] = separator
    elif kind == "number":
        numbers = label.numbers
        classification["number_offset"] = float(f"{statistics.fmean(numbers):.4g}")
        classification["number_scale"] = float(f"{statistics.pstdev(numbers):.4g}")
    steps = math.ceil(num_train / BATCH_SIZE)
    epochs = PRETRAINED_EPOCHS if pretrained else clip(math.ceil(AIMED_STEPS / steps), EPOCHS)
    rows = zip(*(column.cells for column in fields.values()), strict=False)
    length = length_for([sum(map(len, row)) for row in rows])
    is_large = num_train >= MANY_RECORDS
    names = [column.name for column in fields.values()]
    columns = dict(zip((*fields, "label"), (*names, label.name), strict=True))
    return TEMPLATE.format(
        purpose=" ".join(f"Tells {label.name} from {' and '.join(names)} in {table.name}.".split()),
        to=to,
        name=to.stem,
        file=name_file(table),
        **SHARES,
        columns=as_yaml(columns),
        classification=as_yaml(classification),
        batch_size=BATCH_SIZE,
        length=length,
        model=describe_model(pretrained, is_large, length),
        epochs=epochs,
        rate=PRETRAINED_RATE if pretrained else 0.0005 if is_large else 0.001,
        warmup=max(1, steps * epochs // 10),
        every=max(1, epochs // 10),
    )


def count_labels(recipe: Recipe) -> tuple[Counter[str], dict[str, int]]:
    """How often each label occurs, and the records of each split, in what cleaning leaves of them.

    Raises:
        UserError: a label does not occur in training, or a split has no record.
    """
    counts: dict[str, Counter[str]] = {}
    cleaner = build_cleaner(recipe.cleaning, recipe.task_class)
    for split in reversed(recipe.data.splits):
        records = cleaner.clean(split, read_records(recipe.data, split))
        names = (recipe.task_class.labels_in(recipe, record["label"]) for record in records)
        counts[split] = Counter(chain.from_iterable(names))
    splits = {split: cleaner.report[split].kept for split in recipe.data.splits}
    labels = sum(counts.values(), Counter())
    for name in labels:
        if not counts["train"][name]:
            raise UserError(
                f"{recipe.data.train}: label '{name}' occurs in {labels[name]} records, too few to be learnt and "
                "measured; add some, or take it out"
            )
    return labels, splits


def show(table: Path, report: dict[str, Any], left_out: list[str]) -> None:
    """What was found, as a table."""
    kinds = {"one_label": "one label", "several_labels": "several labels", "number": "a number"}
    labels = [f"{name} ({count:,})" for name, count in report["labels"].items()]
    rows = [("text", report["text"])]
    if "other_text" in report:
        rows.append(("other text", report["other_text"]))
    rows.append(("label", f"{report['label']}: {kinds[report['kind']]}"))
    if labels:
        rows.append(("labels", ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if labels[10:] else "")))
    rows.append(("records", ", ".join(f"{split} {count:,}" for split, count in report["splits"].items())))
    if left_out:
        rows.append(("left out", ", ".join(left_out)))
    show_table(f"new: {table}", ("", ""), rows)
    say(f"new: {report['recipe']} is written; --text, --other-text and --label would choose other columns")
