"""One recipe trained with several settings and seeds, each trial in its own process, and all of them side by side."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerasllm.cluster import read_cluster
from kerasllm.data.preparation import prepare_data
from kerasllm.environment import load_tensorflow
from kerasllm.errors import UserError, did_you_mean
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.runs.comparison import (
    Outcome,
    Target,
    draw,
    draw_paths,
    read_outcome,
    summarize,
    without_nan,
    write_csv,
    write_hparams,
)
from kerasllm.runs.trials import Trial, check_trials, plan_trials
from kerasllm.terminal import progress, say, show_table
from kerasllm.training.settings import LOWER_IS_BETTER

POLL_SECONDS = 0.2
LONGEST_LABEL = 60
"""Characters of a setting that still fit into a table."""
SIZES = {"trained": "trained_parameters", "of all": "parameters", "MB stored": "stored_megabytes"}
"""Column -> figure."""
PREPARED_FROM = ("task", "data", "cleaning", "tokenizer")


def compare(
    recipe: str,
    over: Sequence[str],
    run_dir: Path | str,
    num_seeds: int = 1,
    target: str | None = None,
    jobs: int = 1,
    data_dir: Path | str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a recipe with every combination of values and seeds; trials that have ended are not run again.

    Args:
        recipe: a file, or the name of a recipe that comes with the package.
        over: `section.key=value,value,...`, each key once, as `trials.read_over` reads them; all are combined with all.
        run_dir: gets `trials/NAME/` (a run each), `trials/NAME.log`, `comparison.png` and `comparison.csv`.
        num_seeds: the recipe's seed and those after it.
        target: `METRIC=VALUE`; `loss` is the training loss, any other a metric of the validation split.
        jobs: how many trials run at once.
        data_dir: where the files that the recipe names lie.
        overrides: `section.key=value` for all trials.

    Returns:
        `settings`, `trials` (see `comparison.summarize` and the columns of the CSV), `failed` (trial -> its error),
        and where `picture`, `csv` and `logs` lie.

    Raises:
        UserError: TF_CONFIG names several machines, a key or value is wrong, or a trial that is there was made by
            another recipe; all before anything is written. Or every trial failed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the running trials are saved.
    """
    if read_cluster() is not None:
        raise UserError("compare runs on one machine; unset TF_CONFIG")
    directory = Path(run_dir)
    base = load_recipe(recipe, overrides)
    wanted = read_target(target, base) if target else None
    trials = plan_trials(base, recipe, over, num_seeds, directory, overrides, data_dir)
    check_trials(trials)
    prepare_all(trials, data_dir)
    failed = run_trials(trials, recipe, jobs, data_dir)
    if len(failed) == len(trials):
        raise UserError(f"{directory}: all {len(trials)} trials failed; {next(iter(failed.values()))}")
    load_tensorflow()
    outcomes = [read_outcome(trial) for trial in trials if trial.name not in failed]
    return report(directory, base, outcomes, wanted, num_seeds, failed)


def read_target(text: str, recipe: Recipe) -> Target:
    """Reads `METRIC=VALUE`.

    Raises:
        UserError: it is not of that form, or the task has no such metric.
    """
    metric, _, value = text.partition("=")
    if metric not in recipe.metric_names:
        raise UserError(f"--target {text}: no metric '{metric}'; {did_you_mean(metric, recipe.metric_names)}")
    try:
        return Target(metric, float(value))
    except ValueError as error:
        raise UserError(f"--target {text}: must be METRIC=NUMBER") from error


def prepare_all(trials: Sequence[Trial], data_dir: Path | str | None) -> None:
    """Prepares the data of every trial, so that what is wrong with it is said once, and no two trials do the same.

    Raises:
        UserError: bad input.
    """

    def read_of(recipe: Recipe) -> list[Any]:
        return [*(recipe.dump()[part] for part in PREPARED_FROM), recipe.task_class.encoding_settings(recipe)]

    distinct = {json.dumps(read_of(trial.recipe)): trial.recipe for trial in trials}
    for recipe in distinct.values():
        prepare_data(recipe, data_dir)


def start_trial(trial: Trial, recipe: str, data_dir: Path | str | None) -> subprocess.Popen:
    """Starts the training of one trial; what it says goes to `trials/NAME.log`."""
    directory = trial.directory.path
    directory.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kerasllm", "train", recipe, "--run-dir", str(directory)]
    command += [part for override in trial.overrides for part in ("--set", override)]
    command += ["--data-dir", str(data_dir)] if data_dir is not None else []
    with open(trial.log_path, "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def report_trial(trial: Trial) -> str | None:
    """Says in one line how a trial ended; returns its error if it failed."""
    finished, best_metric = trial.finished(), trial.recipe.training.best_metric
    if finished is not None:
        figures = f"{best_metric} {finished['validation'][best_metric]:.4g}"
        say(f"{trial.name}: {figures} after {finished['steps']:,} steps in {finished['seconds']:.1f} s")
        return None
    lines = trial.log_path.read_text("utf-8", "replace").strip().splitlines()
    error = lines[-1].removeprefix("error: ") if lines else "ended without a word"
    say(f"{trial.name}: failed: {error}; see {trial.log_path}")
    return error


def run_trials(trials: Sequence[Trial], recipe: str, jobs: int, data_dir: Path | str | None) -> dict[str, str]:
    """Runs all trials that have not ended, `jobs` at once.

    Returns:
        The names of those that failed, with the error of each.

    Raises:
        KeyboardInterrupt: a signal stopped it, after the running trials have saved.
    """
    waiting = [trial for trial in trials if trial.finished() is None]
    running: list[tuple[Trial, subprocess.Popen]] = []
    failed: dict[str, str] = {}
    if len(waiting) < len(trials):
        say(f"{len(trials) - len(waiting)} of {len(trials)} trials have ended before")
    if not waiting:
        return failed
    with progress("compare", total=len(waiting), unit="trials") as bar, _stopping(trials, running):
        bar.advance(0)  # the clock for the time left starts
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append((waiting[0], start_trial(waiting.pop(0), recipe, data_dir)))
            time.sleep(POLL_SECONDS)
            for trial, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((trial, process))
                error = report_trial(trial)
                if error:
                    failed[trial.name] = error
                bar.advance()
    return failed


@contextmanager
def _stopping(trials: Sequence[Trial], running: list[tuple[Trial, subprocess.Popen]]) -> Iterator[None]:
    """However the block ends, no trial goes on running: each is asked to save and waited for. SIGTERM is as Ctrl-C."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        say("the running trials save and stop")
        _stop(running)
        done = sum(trial.finished() is not None for trial in trials)
        message = f"stopped; {done} of {len(trials)} trials have ended; the same command goes on"
        raise KeyboardInterrupt(message) from None
    finally:
        _stop(running)
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _stop(running: Sequence[tuple[Trial, subprocess.Popen]]) -> None:
    # Ctrl-C has reached the trials too, and a second one would stop them without saving: hence SIGTERM.
    for _, process in running:
        process.terminate()
    for _, process in running:
        process.wait()


def report(
    directory: Path,
    recipe: Recipe,
    outcomes: Sequence[Outcome],
    target: Target | None,
    num_seeds: int,
    failed: dict[str, str],
) -> dict[str, Any]:
    """Writes picture, table and HParams, and shows the table; returns what `compare` returns."""
    best_metric = recipe.training.best_metric
    settings = summarize(outcomes, best_metric, target)
    picture, table, logs = directory / "comparison.png", directory / "comparison.csv", directory / "trials"
    write_csv(table, outcomes, best_metric, target)
    draw(picture, f"{recipe.name}: {len(settings)} settings", outcomes, target)
    if hasattr(recipe.task_class, "landscape"):
        draw_paths(directory / "paths.png", outcomes)
        say(f"the paths: {directory / 'paths.png'}")
    write_hparams(logs, outcomes, best_metric, target)
    show_settings(settings, best_metric, target, num_seeds)
    say(f"picture: {picture}; one line for each trial: {table}")
    trials = [
        {"trial": each.trial.name, "seed": each.trial.seed, **each.figures(best_metric, target)} for each in outcomes
    ]
    paths = {"picture": str(picture), "csv": str(table), "logs": str(logs)}
    return without_nan({"settings": settings, "trials": trials, "failed": failed, **paths})


def show_settings(settings: Sequence[dict[str, Any]], best_metric: str, target: Target | None, num_seeds: int) -> None:
    """Shows one line for each setting, the best first; a spread is the standard deviation over the seeds.

    What is trained and stored is shown where the settings differ in it, or in how they adapt a model. Settings with
    long names are numbered, and named below.
    """
    figures = {"train loss": "train_loss", best_metric: f"validation_{best_metric}"}
    if target:
        figures |= {f"steps to {target}": "steps_to_target", "seconds to it": "seconds_to_target"}
    else:
        figures["seconds"] = "seconds"
    are_ways_to_adapt = any(key.partition(".")[0] == "tuning" for key in settings[0]["values"])
    for column, name in SIZES.items():
        found = {setting[name]["mean"] for setting in settings}
        if None not in found and (len(found) > 1 or are_ways_to_adapt):
            figures[column] = name
    sign = 1 if best_metric in LOWER_IS_BETTER else -1

    def badness(setting: dict[str, Any]) -> float:
        value = sign * setting[f"validation_{best_metric}"]["mean"]
        return value if math.isfinite(value) else math.inf

    labels, rows = [], []
    for setting in sorted(settings, key=badness):
        count = setting["trials"]
        labels.append(setting["label"] if count == num_seeds else f"{setting['label']} ({count} of {num_seeds} trials)")
        rows.append([_as_figure(setting[name], count) for name in figures.values()])
    title = f"compare: mean ± spread over {num_seeds} seeds" if num_seeds > 1 else "compare"
    are_long = max(map(len, labels)) > LONGEST_LABEL
    names = [str(number) for number in range(1, len(labels) + 1)] if are_long else labels
    show_table(title, ("setting", *figures), [[name, *row] for name, row in zip(names, rows, strict=True)])
    if are_long:
        for name, label in zip(names, labels, strict=True):
            say(f"setting {name}: {label}")


def _as_figure(figure: dict[str, Any], trials: int) -> str:
    if not figure["count"]:
        return "never"
    spread = f" ± {figure['spread']:.2g}" if figure["spread"] is not None else ""
    share = f" ({figure['count']} of {trials})" if figure["count"] < trials else ""
    mean = f"{figure['mean']:.4g}"
    if figure["mean"] >= 1e4:
        mean = f"{figure['mean'] / 1e6:.4g} M" if figure["mean"] >= 1e6 else f"{figure['mean']:,.0f}"
    return f"{mean}{spread}{share}"
