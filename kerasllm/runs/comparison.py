"""What the trials of a comparison gave, side by side: curves, figures, a picture, a table, TensorBoard's HParams.

All is read from what a run keeps anyway, so trials can be compared again after more of them were run.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.environment import load_tensorflow
from kerasllm.run_directory import atomic_write_bytes, atomic_write_text
from kerasllm.runs.trials import Trial, as_text
from kerasllm.training.settings import LOWER_IS_BETTER

LOSS_TAG = "train/loss"
SIZES = ("trained_parameters", "parameters", "stored_megabytes")
"""What a run notes of its weights: how many are trained in some phase, of how many, and the size of the chosen."""
SMOOTHING_SHARE = 50
HPARAMS_SUFFIX = ".hparams"
LINE_STYLES = ("-", "--", ":", "-.")
LEGEND_WIDTH = 70
"""Characters in a line."""


@dataclass(frozen=True)
class Target:
    """A value that is to be reached: the training loss for `loss`, else a metric of the validation split."""

    metric: str
    value: float

    def is_reached(self, value: float) -> bool:
        """Whether a value is as good as the target."""
        return value <= self.value if self.metric in LOWER_IS_BETTER else value >= self.value

    def __str__(self) -> str:
        return f"{self.metric} {self.value:g}"


@dataclass(frozen=True)
class Outcome:
    """What a finished trial wrote.

    Attributes:
        losses: training loss [steps], the mean over the last fiftieth of the steps so far: single batches jump.
        seconds: [steps], of training since its first step ended, so that start and compilation do not count; the
            time between the sessions of a stopped run does not count either.
        evaluations: the lines of `metrics.jsonl`.
        finished: what training returned.
    """

    trial: Trial
    losses: np.ndarray
    seconds: np.ndarray
    evaluations: list[dict[str, Any]]
    finished: dict[str, Any]

    def first_step_at(self, target: Target) -> int | None:
        """The first step, counted from 1, at which the target is reached; None if it never is."""
        if target.metric == "loss":
            reached = [step for step, loss in enumerate(self.losses, start=1) if target.is_reached(loss)]
        else:
            reached = [
                line["step"] for line in self.evaluations if target.is_reached(line["validation"][target.metric])
            ]
        return reached[0] if reached else None

    def figures(self, best_metric: str, target: Target | None) -> dict[str, float | None]:
        """The numbers of this trial by name; None for a target that was never reached, and for what a run of an earlier
        version did not note."""
        figures = {
            "train_loss": float(self.losses[-1]),
            f"validation_{best_metric}": float(self.finished["validation"][best_metric]),
            "steps": len(self.losses),
            "seconds": self.finished["seconds"],
            **{name: self.finished.get(name) for name in SIZES},
        }
        if target:
            step = self.first_step_at(target)
            figures["steps_to_target"] = step
            figures["seconds_to_target"] = step and round(float(self.seconds[step - 1]), 3)
        return figures


def running_mean(values: Sequence[float]) -> np.ndarray:
    """The mean of each value with those before it, over a fiftieth of all of them."""
    window = max(1, len(values) // SMOOTHING_SHARE)
    return np.array([np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)])


def read_scalars(logs: Path, tag: str) -> tuple[list[float], list[float]]:
    """Reads one figure of every step of a run from its TensorBoard files, one file for each session.

    Where a killed session had gone past its last checkpoint, the steps of the next one count.

    Returns:
        The values, and the seconds since the first step; the time between two sessions is left out.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    values: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for path in sorted(logs.glob("*.tfevents.*")):
        began = None
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == tag:
                    if began is None:
                        began = event.wall_time - seconds.get(event.step - 1, 0.0)
                    values[event.step] = make_ndarray(value.tensor).item()
                    seconds[event.step] = event.wall_time - began
    return [values[step] for step in sorted(values)], [seconds[step] for step in sorted(values)]


def read_outcome(trial: Trial) -> Outcome:
    """Reads a finished trial."""
    losses, seconds = read_scalars(trial.directory.logs_path, LOSS_TAG)
    evaluations = trial.directory.read_metrics()
    return Outcome(trial, running_mean(losses), np.array(seconds), evaluations, trial.finished() or {})


def by_setting(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Label of a setting -> the outcomes of its seeds."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.trial.label, []).append(outcome)
    return groups


def mean_and_spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """`mean` and `spread` (standard deviation of a sample) of the values that are there, and their `count`."""
    present = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(present)) if present else None,
        "spread": float(np.std(present, ddof=1)) if len(present) > 1 else None,
        "count": len(present),
    }


def summarize(outcomes: Sequence[Outcome], best_metric: str, target: Target | None) -> list[dict[str, Any]]:
    """One entry for each setting: its `label`, its `values`, how many `trials`, and of each figure mean and spread."""
    settings = []
    for label, group in by_setting(outcomes).items():
        rows = [outcome.figures(best_metric, target) for outcome in group]
        figures = {name: mean_and_spread([row[name] for row in rows]) for name in rows[0]}
        settings.append({"label": label, "values": group[0].trial.values, "trials": len(group), **figures})
    return settings


def write_csv(path: Path, outcomes: Sequence[Outcome], best_metric: str, target: Target | None) -> None:
    """Writes one line for each trial: name, swept values, seed and figures."""
    rows = [
        {
            "trial": outcome.trial.name,
            **outcome.trial.values,
            "seed": outcome.trial.seed,
            **outcome.figures(best_metric, target),
        }
        for outcome in outcomes
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())


def loss_band(group: Sequence[Outcome]) -> np.ndarray:
    """Smallest, mean and greatest loss over the seeds of a setting, [3, steps] of the shortest trial."""
    steps = min(len(outcome.losses) for outcome in group)
    losses = np.stack([outcome.losses[:steps] for outcome in group])
    return np.stack([losses.min(axis=0), losses.mean(axis=0), losses.max(axis=0)])


def draw(path: Path, title: str, outcomes: Sequence[Outcome], target: Target | None) -> None:
    """Draws the training loss of each setting over the steps: its mean, and a band from least to greatest seed.

    The loss axis is logarithmic where no loss is below zero and the greatest is ten times the least or more.
    """
    from matplotlib.figure import Figure

    bands = {label: loss_band(group) for label, group in by_setting(outcomes).items()}
    figure = Figure(figsize=(10, 6), layout="constrained")
    several = any(len(group) > 1 for group in by_setting(outcomes).values())
    loss = "training loss, mean and range over the seeds" if several else "training loss"
    axes = figure.add_subplot(title=title, xlabel="optimizer steps", ylabel=loss)
    for index, (label, (least, mean, greatest)) in enumerate(bands.items()):
        steps = np.arange(1, len(mean) + 1)
        style = LINE_STYLES[index // 10 % len(LINE_STYLES)]
        axes.plot(
            steps, mean, style, color=f"C{index % 10}", label=in_legend(label), marker="" if len(steps) > 1 else "o"
        )
        axes.fill_between(steps, least, greatest, color=f"C{index % 10}", alpha=0.2, linewidth=0)
    losses = np.concatenate([band.ravel() for band in bands.values()])
    losses = losses[np.isfinite(losses)]
    if losses.size and losses.min() > 0 and losses.max() >= 10 * losses.min():
        axes.set_yscale("log")
    if target and target.metric == "loss":
        axes.axhline(target.value, color="gray", linewidth=1, label=f"target: {target}")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns(bands))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    atomic_write_bytes(path, content.getvalue())


def in_legend(label: str) -> str:
    """A label as a picture shows it: in lines of some length, and its dollars are none of matplotlib's formulas."""
    return textwrap.fill(label, LEGEND_WIDTH).replace("$", r"\$")


def legend_columns(labels: Collection[str]) -> int:
    """Two where there are many labels, and each fits into half of a picture."""
    return 2 if len(labels) > 6 and max(map(len, labels)) <= LEGEND_WIDTH // 2 else 1


def draw_paths(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Draws, for a task with a landscape, the way of every trial over the contours of its surface.

    One panel for each surface, a colour for each setting, a line for each seed; stars mark the minima.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        panels.setdefault(outcome.trial.recipe.model.landscape, []).append(outcome)
    labels = list(by_setting(outcomes))
    figure = Figure(figsize=(9 * len(panels), 8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, group) in zip(all_axes, panels.items(), strict=True):
        draw_landscape(axes, name, group[0].trial.recipe.task_class.landscape(group[0].trial.recipe))
        for label, seeds in by_setting(group).items():
            index = labels.index(label)
            style = LINE_STYLES[index // 10 % len(LINE_STYLES)]
            for number, outcome in enumerate(seeds):
                x, y = walk_of(outcome.trial)
                shown = in_legend(label) if number == 0 else None
                axes.plot(x, y, style, color=f"C{index % 10}", label=shown, alpha=0.8, linewidth=1.2)
                axes.plot(x[-1], y[-1], "o", color=f"C{index % 10}", markersize=5)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.08), ncols=legend_columns(labels))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    atomic_write_bytes(path, content.getvalue())


def walk_of(trial: Trial) -> tuple[list[float], list[float]]:
    """The positions x and y of a trial on its surface: the start, and that after each step."""
    start = trial.recipe.task_class.landscape(trial.recipe).start
    x, y = (read_scalars(trial.directory.logs_path, f"train/{name}")[0] for name in ("x", "y"))
    return [start[0], *x], [start[1], *y]


def draw_landscape(axes: Any, name: str, landscape: Any) -> None:
    """Draws the contours of a surface, closer where it is lower, its minima and the start."""
    left, right, bottom, top = landscape.window
    x, y = np.meshgrid(np.linspace(left, right, 300), np.linspace(bottom, top, 300))
    heights = landscape.height(x, y)
    levels = heights.min() + np.ptp(heights) * np.geomspace(1e-4, 1.0, 24)
    axes.contour(x, y, heights, levels=levels, colors="gray", linewidths=0.5)
    for minimum in landscape.minima:
        axes.plot(*minimum, "k*", markersize=12)
    axes.plot(*landscape.start, "ks", markersize=6)
    axes.set(title=name, xlabel="x", ylabel="y", xlim=(left, right), ylim=(bottom, top))


def write_hparams(logs: Path, outcomes: Sequence[Outcome], best_metric: str, target: Target | None) -> None:
    """Writes, for TensorBoard's HParams, what was compared to `logs`, and values and figures to each trial's logs.

    Files of an earlier comparison are replaced.
    """
    load_tensorflow()
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    def new_writer(directory: Path) -> tf.summary.SummaryWriter:
        for old in directory.glob(f"*{HPARAMS_SUFFIX}"):
            old.unlink()
        return tf.summary.create_file_writer(str(directory), filename_suffix=HPARAMS_SUFFIX)

    first = outcomes[0]
    keys, figures = [*first.trial.values, "seed"], first.figures(best_metric, target)
    with new_writer(logs).as_default():
        metrics = [api.Metric(f"final/{name}", display_name=name.replace("_", " ")) for name in figures]
        api.hparams_config([api.HParam(key) for key in keys], metrics)
    for outcome in outcomes:
        trial = outcome.trial
        values = {key: value if _is_plain(value) else as_text(value) for key, value in trial.values.items()}
        with new_writer(trial.directory.logs_path).as_default(len(outcome.losses)):
            api.hparams({**values, "seed": trial.seed}, trial_id=trial.name)
            for name, value in outcome.figures(best_metric, target).items():
                if value is not None:
                    tf.summary.scalar(f"final/{name}", value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float))


def without_nan(value: Any) -> Any:
    """The same value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
