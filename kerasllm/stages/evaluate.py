"""Answers of a run to a whole split, and how good they are."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerasllm.data.batching import BatchStream
from kerasllm.data.preparation import prepare_data
from kerasllm.data.store import Prepared
from kerasllm.data.vocabulary import vocabulary_hashes
from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory, atomic_write_bytes, atomic_write_text
from kerasllm.runs.evaluation import Evaluator, png_of
from kerasllm.runs.trained_run import load_run
from kerasllm.terminal import say, show_table

NUM_SAMPLES = 5
MAX_SHOWN = 160
"""Characters of a text in the table of first answers; the file of predictions has all of it."""
WORTH_A_LINE_SECONDS = 2.0


def check_vocabulary(run: RunDirectory, prepared: Prepared) -> None:
    """Raise UserError if the data gives another vocabulary than the one that the run was trained with."""
    ours, theirs = (vocabulary_hashes(directory) for directory in (run.path, prepared.directory))
    if ours != theirs:
        raise UserError(
            f"{run.path}: its training data has changed: it gives another vocabulary now; "
            "name the data that the run was trained on with --data-dir"
        )


def show_report(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Shows the figures, a table for each one among them, and the first answers without their lists."""
    tables = {name: value for name, value in report.items() if isinstance(value, dict)}
    show_table("evaluate", ("", ""), [(name, shown(value)) for name, value in report.items() if name not in tables])
    for name, table in tables.items():
        columns = ("", *next(iter(table.values())))
        show_table(name, columns, [(row, *map(shown, cells.values())) for row, cells in table.items()])
    names = [name for name, value in rows[0].items() if not isinstance(value, list)]
    samples = [tuple(shortened(shown(row[name])) for name in names) for row in rows[:NUM_SAMPLES]]
    show_table("the first of them", names, samples)


def shown(value: Any) -> str:
    """A value for people: a list as its parts, a float with four digits."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def shortened(text: str) -> str:
    """A text on one line, without what goes beyond `MAX_SHOWN` characters."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def write_pictures(evaluator: Evaluator, split: str, directory: Path) -> list[str]:
    """Writes the pictures that the task has of its answers, as `<split>_<name>.png`; returns the files."""
    files = []
    for name, figure in evaluator.task.pictures(evaluator.answers, evaluator.references, evaluator.columns).items():
        files.append(str(directory / f"{split}_{name}.png"))
        atomic_write_bytes(Path(files[-1]), png_of(figure))
    return files


def measure_baseline(evaluator: Evaluator, prepared: Prepared) -> dict[str, Any]:
    """What a simple way makes of the same texts, where the recipe asks for it; says so if that takes its time."""
    started = time.monotonic()
    training = prepared.examples("train").texts
    figures = evaluator.task.baseline(training, evaluator.columns, evaluator.references)
    seconds = time.monotonic() - started
    if figures and seconds > WORTH_A_LINE_SECONDS:
        say(f"baseline: learnt from the training split in {seconds:.1f} s")
    return figures


def evaluate(
    run_dir: Path | str, split: str = "test", data_dir: Path | str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Answer a split, write `predictions/<split>.jsonl` in the order of the split, and measure.

    Args:
        run_dir: the run directory.
        split: `test`, `validation` or `train`.
        data_dir: where the files that the recipe names lie.
        overrides: `section.key=value`, such as `generation.beam_size=1`.

    Returns:
        The metrics of the task; those of its `baseline`, if the recipe asks for it; `loss` (nats, without label
        smoothing) and `perplexity` of each token or what else the task counts, and how many there were in the examples
        that are not too long for training; how many `records` were answered, the `seconds` that this took,
        `records_per_second`, where the `predictions` lie, and the files of the `pictures` that the task draws, if any.

    Raises:
        UserError: no such run or split, or data that the run was not trained on.
    """
    run = load_run(run_dir, overrides, data_dir)
    prepared = prepare_data(run.recipe, data_dir)
    check_vocabulary(run.directory, prepared)
    examples = prepared.examples(split)
    evaluator = Evaluator(run.task, run.model, examples, BatchStream(examples, run.recipe.batching, run.recipe.seed))
    started = time.monotonic()
    metrics, rows = evaluator(f"evaluate {split}")
    seconds = time.monotonic() - started
    metrics |= measure_baseline(evaluator, prepared)
    path = run.directory.predictions_path / f"{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report = {
        "split": split,
        **metrics,
        "records": len(rows),
        "seconds": round(seconds, 2),
        "records_per_second": round(len(rows) / seconds, 1),
        "predictions": str(path),
    }
    if pictures := write_pictures(evaluator, split, path.parent):
        report["pictures"] = pictures
    show_report(report, rows)
    return report
