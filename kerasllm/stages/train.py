"""From a recipe to trained weights, by `fit`; in a run directory that exists the run goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorboard.compat.proto import event_pb2

import kerasllm
from kerasllm.cluster import (
    from_chief,
    is_alone,
    is_chief,
    join_cluster,
    lost_workers_named,
    read_cluster,
    wait_until_visible,
)
from kerasllm.data.preparation import prepare_data
from kerasllm.data.store import Prepared
from kerasllm.data.vocabulary import copy_vocabulary, vocabulary_hashes
from kerasllm.environment import build_strategy
from kerasllm.errors import UserError, did_you_mean
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import (
    RunDirectory,
    atomic_write_text,
    naming_the_target,
    remove_leftovers,
)
from kerasllm.runs.base_weights import base_weights, remember_base
from kerasllm.runs.evaluation import png_of
from kerasllm.runs.incident_report import describe_step
from kerasllm.runs.pretrained import complete_recipe, take_as_it_is
from kerasllm.runs.table import show_run
from kerasllm.runs.training_run import Run, build_run
from kerasllm.terminal import be_quiet, progress, say
from kerasllm.training.callbacks import Evaluation, Saving, StepLog, score_of
from kerasllm.training.checkpoints import Checkpoints, average, read_variables, write_variables
from kerasllm.training.failures import NO_FAILURES, Failures, RollBack
from kerasllm.training.ticks import Ticking
from kerasllm.tuning.adaptation import begin

NUM_SAMPLES = 8
LOG_QUEUE = 1000
"""Events that wait in memory until TensorBoard's file is written, at the latest after two minutes or by a save."""
VERSIONS = {"kerasllm": kerasllm.__version__, "keras": keras.__version__, "tensorflow": tf.__version__}


def train(recipe: Recipe, run_dir: Path | str, data_dir: Path | str | None = None) -> dict[str, Any]:
    """Train the model of a recipe, or go on with a run that was stopped.

    Args:
        recipe: from `load_recipe`.
        run_dir: where the run lives; made if it is not there.
        data_dir: where the files that the recipe names lie.

    Returns:
        `steps`, `seconds` of training in all sessions, the metrics of the validation split with the chosen weights,
        and what was chosen.

    Raises:
        UserError: the run was made by another recipe, its data has changed, or the recipe does not fit the data.
        KeyboardInterrupt: training was stopped by Ctrl-C or SIGTERM, and is saved.
    """
    directory, cluster = RunDirectory(run_dir), read_cluster()
    check_recipe(recipe)
    recipe = complete_recipe(recipe, data_dir)
    check_run(directory, recipe)
    if recipe.training.train_steps == 0:
        if cluster:
            place = recipe.place("training", "train_steps")
            raise UserError(f"{place}: 0 leaves no work for several machines; unset TF_CONFIG")
        return take_over(directory, recipe, data_dir)
    replicas, on_cpu = recipe.training.num_replicas, recipe.training.cpu_replicas
    # Before TensorFlow runs anything: it fixes the devices.
    strategy = join_cluster(cluster, replicas, fingerprints(recipe)) if cluster else build_strategy(replicas, on_cpu)
    if not is_chief(strategy):
        be_quiet()
    with lost_workers_named(strategy):
        return train_with(strategy, directory, recipe, data_dir)


def take_over(directory: RunDirectory, recipe: Recipe, data_dir: Path | str | None) -> dict[str, Any]:
    """A run of no steps, whose weights are those that its recipe begins with; on one machine, nothing is shared."""
    prepared = prepare_data(recipe, data_dir)
    if finished := directory.read_manifest().get("finished"):
        say(f"{directory.path}: is made already; remove it to make it again")
        return finished
    model, metrics = take_as_it_is(recipe, prepared, data_dir)
    begin_run(directory, recipe, prepared)
    report = {"steps": 0, "seconds": 0.0, "chosen": f"{recipe.model.pretrained} as it is", "validation": metrics}
    chosen = {name: report[name] for name in ("chosen", "validation")}
    Checkpoints(directory).choose(read_variables(model.weights), chosen)
    directory.write_manifest(finished=report)
    say(f"train: {report['chosen']}, without any training; {directory.path} answers")
    return report


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """What must be the same on all workers, besides their data."""
    digest = hashlib.sha256(recipe.to_yaml().encode("utf-8")).hexdigest()
    return {"version": ", ".join(f"{name} {version}" for name, version in VERSIONS.items()), "recipe": digest[:12]}


def train_with(
    strategy: tf.distribute.Strategy, directory: RunDirectory, recipe: Recipe, data_dir: Path | str | None
) -> dict[str, Any]:
    """`train` on the devices of a strategy; all workers of it call this, and the chief alone writes."""
    prepared = prepare_on_all(strategy, recipe, data_dir)
    run = build_run(directory, recipe, prepared, strategy, data_dir, recipe.training.micro_batches)
    with ExitStack() as held:

        def begin_alone() -> None:
            if "finished" not in directory.read_manifest():  # one that is may lie where nothing can be written
                held.enter_context(directory.held())
            begin_run(directory, recipe, prepared, run.teachers)

        from_chief(strategy, begin_alone)
        if not is_chief(strategy):
            wait_until_visible(directory.path, directory.exists)
        finished = from_chief(strategy, lambda: directory.read_manifest().get("finished"))
        if finished is not None:
            say(f"{directory.path}: is trained already; remove it to train again")
            return finished
        run, seconds = fit_to_the_end(run, prepared, data_dir)
        return from_chief(strategy, lambda: finish(run, seconds))


def prepare_on_all(strategy: tf.distribute.Strategy, recipe: Recipe, data_dir: Path | str | None) -> Prepared:
    """The prepared data: first the chief's, then, in the same cache or in one of its own, that of each other worker.

    Raises:
        UserError: see `prepare_data`, or a worker's data is not that of the chief.
    """
    prepared = prepare_data(recipe, data_dir) if is_chief(strategy) else None
    theirs = from_chief(strategy, lambda: [prepared.directory.name, prepared.checksum])
    prepared = prepared or prepare_data(recipe, data_dir)
    if [prepared.directory.name, prepared.checksum] != theirs:
        raise UserError(f"{prepared.directory}: is not what the chief has prepared; give all workers the same files")
    return prepared


def finish(run: Run, seconds: float) -> dict[str, Any]:
    """Chooses the weights of a run that is trained, and notes in its manifest that it is."""
    report = {"steps": run.trainer.optimizer.iterations.numpy().item(), "seconds": round(seconds, 1), **choose(run)}
    report["trained_parameters"], report["parameters"] = run.trainer.parameter_counts
    report["stored_megabytes"] = round(run.trainer.stored_megabytes, 3)
    run.directory.write_manifest(finished=report)
    return report


def check_recipe(recipe: Recipe) -> None:
    """Finds what would otherwise come up at the first evaluation.

    Raises:
        UserError: there is no validation split, or the task has no such metric.
    """
    if recipe.data.validation is None and recipe.training.train_steps != 0:
        raise UserError(f"{recipe.path}: data.validation: is missing; name what the weights are chosen by")
    known, chosen = recipe.metric_names, recipe.training.best_metric
    if chosen not in known:
        raise UserError(f"{recipe.path}: training.best_metric: no metric '{chosen}'; {did_you_mean(chosen, known)}")
    for index, tick in enumerate(recipe.ticks):
        name = tick.when_plateau.metric.removeprefix("validation_") if tick.when_plateau else known[0]
        if name not in known:
            place = recipe.place("ticks", index, "when_plateau", "metric")
            raise UserError(f"{place}: no metric '{name}'; {did_you_mean(name, known)}")


def check_run(directory: RunDirectory, recipe: Recipe) -> None:
    """Compares the recipe with that of a run that is there.

    Raises:
        UserError: the run was made by another one; the differing keys are named.
    """
    differing = recipe.differing_keys(load_recipe(directory.recipe_path)) if directory.exists() else []
    if differing:
        keys = "; ".join(differing)
        raise UserError(f"{directory.path}: was made by another recipe: {keys}; take that recipe or another --run-dir")


def begin_run(
    directory: RunDirectory, recipe: Recipe, prepared: Prepared, teachers: dict[str, str] | None = None
) -> None:
    """Writes manifest, vocabulary and, last, the recipe into a new run; checks the data of one that is there.

    Raises:
        UserError: the data, its tokenizer or a teacher has changed since the run was begun.
    """
    teachers = teachers or {}
    if not directory.exists():
        directory.create()
        directory.write_manifest(versions=VERSIONS, prepared=prepared.directory.name, teachers=teachers)
        copy_vocabulary(prepared.directory, directory.path)
        atomic_write_text(directory.recipe_path, recipe.to_yaml())
        return
    if directory.read_manifest().get("prepared") != prepared.directory.name:
        raise UserError(f"{directory.path}: its data has changed since it was begun; train in another --run-dir")
    before = directory.read_manifest().get("teachers", {})
    for name, now in teachers.items():
        if before.get(name) != now:
            raise UserError(
                f"{directory.path}: the weights of its teacher {name} have changed since it was begun; put them "
                "back, or train in another --run-dir"
            )
    if vocabulary_hashes(directory.path) != vocabulary_hashes(prepared.directory):
        raise UserError(
            f"{directory.path}: its tokenizer or labels are not those of the data, {prepared.directory}; "
            "put back what the run was begun with, or train in another --run-dir"
        )


def restore(run: Run) -> dict[str, Any]:
    """Goes back to the newest checkpoint that is whole, on all workers to the one that the chief finds, and removes
    what the run has written since.

    Returns:
        The state of the run, with step 0 where there is no checkpoint.

    Raises:
        UserError: it was saved with another recipe, tokenizer or data.
    """
    state = {"step": 0}
    name = from_chief(run.strategy, lambda: getattr(run.checkpoints.latest(), "path", Path()).name)
    if name:
        checkpoint = run.checkpoints.named(name)
        if not is_chief(run.strategy):
            wait_until_visible(checkpoint.path, checkpoint.is_whole)
        write_variables(run.trainer.stored_weights, checkpoint.load("weights"), str(checkpoint.path))
        run.trainer.start_averages()
        write_variables(run.trainer.state_variables, checkpoint.load("state"), str(checkpoint.path))
        state = checkpoint.progress
    if is_chief(run.strategy):
        remove_leftovers(run.directory.path)
        run.checkpoints.go_back_to(state["step"])
        run.directory.cut_metrics(state["step"])
    return state


def begin_adapting(run: Run, data_dir: Path | str | None) -> None:
    """Gives what adapts published weights its first values, and leaves out of checkpoints what stays as it is.

    Raises:
        UserError: a run that is there was begun with other weights.
    """
    weights = base_weights(run.trainer.model, run.recipe)
    if weights:
        from_chief(run.strategy, lambda: remember_base(run.directory, run.recipe, weights, data_dir))
    run.trainer.left_out = weights
    begin(run.trainer.model, run.recipe.seed)


def fit_to_the_end(run: Run, prepared: Prepared, data_dir: Path | str | None) -> tuple[Run, float]:
    """Trains, again from the last checkpoint where a failure asks for it, or a batch is too large for memory.

    It is then what a new process would do. With twice as many micro-batches the step stays what it is (see `Trainer`);
    only the masks of dropout are others.

    Returns:
        The run that was trained in the end, and the seconds of training.

    Raises:
        UserError: there is not enough memory for single examples, or not on one of several workers.
    """
    failures = None
    while True:
        begin_adapting(run, data_dir)
        state = restore(run)
        state["failures"] = failures or state.get("failures", NO_FAILURES)
        show_run(run, prepared, state["step"])
        micro_batches = run.stream.micro_batches
        try:
            # TensorFlow reports a full disk, which its logs have met, as it does memory that is used up.
            with naming_the_target(run.directory.logs_path, inside=run.directory.logs_path):
                return run, fit(run, state)
        except RollBack as roll_back:
            failures = roll_back.state
        except tf.errors.ResourceExhaustedError as error:
            if not is_alone(run.strategy):
                raise UserError("out of memory on this worker; raise training.micro_batches") from error
            micro_batches *= 2
            if micro_batches > max(len(rows) for rows in run.stream.batches(0)):
                raise UserError("out of memory with single examples; make the model smaller") from error
            say(f"out of memory: each batch is taken in {micro_batches} micro-batches from here on, the step stays")
        directory, recipe, strategy = run.directory, run.recipe, run.strategy
        del run
        keras.backend.clear_session()
        run = build_run(directory, recipe, prepared, strategy, data_dir, micro_batches)


def fit(run: Run, state: dict[str, Any]) -> float:
    """Trains from the step of `state` to the end of the plan.

    Returns:
        Seconds of training in all sessions of the run.

    Raises:
        KeyboardInterrupt: a signal stopped it; the checkpoint is written.
    """
    settings = run.recipe.training
    epoch, step_in_epoch = run.plan.locate(state["step"])
    run.stream.seek(epoch, step_in_epoch, first_step=run.plan.epoch_starts[epoch])
    strategy, directory, writes = run.strategy, run.directory, is_chief(run.strategy)
    dataset = run.stream.distributed_dataset(strategy)
    writer = open_log(directory, state["step"]) if writes else tf.summary.create_noop_writer()
    with progress("train", total=run.plan.total_steps, unit="steps") as bar, closing(writer):
        bar.advance(state["step"])
        evaluate = partial(from_chief, strategy, partial(evaluate_now, run, writer))
        record = directory.append_metrics if writes else (lambda metrics: None)
        evaluation = Evaluation(evaluate, run.plan, settings, record, writer, bar)
        evaluation.state = state.get("evaluation", evaluation.state)
        ticking = Ticking(run.timeline, run.schedule, lambda: evaluation.metrics, partial(report, writer, "tick"))
        ticking.restore(state.get("ticks", []), state["step"])
        failures = build_failures(run, writer, state["failures"])
        every, before = settings.checkpoint_every_steps, state.get("seconds", 0.0)
        checkpoints, carried = (run.checkpoints if writes else None), partial(progress_of, ticking, failures)
        saving = Saving(checkpoints, evaluation, carried, writer, every, before, is_alone(strategy))
        remaining = run.plan.total_steps - state["step"]
        if remaining and not evaluation.has_stalled:
            step_log = StepLog(bar, writer, run.task.counted, getattr(run.task, "step_figures", dict))
            callbacks = [step_log, failures, evaluation, ticking, saving]
            try:
                run.trainer.fit(dataset, steps_per_epoch=remaining, shuffle=False, verbose=0, callbacks=callbacks)
            finally:
                saving.on_train_end()
    if saving.was_interrupted:
        step = int(run.trainer.optimizer.iterations.numpy())
        raise KeyboardInterrupt(f"stopped after step {step:,}, which is saved; the same command goes on from there")
    return saving.seconds


def open_log(directory: RunDirectory, step: int) -> tf.summary.SummaryWriter:
    """A writer for TensorBoard, which it tells to forget what was logged after `step` steps and is logged again."""
    writer = tf.summary.create_file_writer(str(directory.logs_path), max_queue=LOG_QUEUE)
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    event = event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start)
    tf.raw_ops.ImportEvent(writer=writer._resource, event=event.SerializeToString())  # no summary says it
    return writer


def progress_of(ticking: Ticking, failures: Failures) -> dict[str, Any]:
    """What a checkpoint holds for the callbacks to go on from."""
    return {"ticks": ticking.state, "failures": failures.state}


def build_failures(run: Run, writer: tf.summary.SummaryWriter, state: dict[str, int]) -> Failures:
    """What follows the policy for steps that went wrong, with the learning rate that earlier ones have left."""
    settings = run.recipe.training.on_failure
    if settings.name == "roll_back":
        run.schedule.roll_back_factor.assign(settings.learning_rate_factor ** state["roll_backs"])
    attempt = state["roll_backs"] + 1
    return Failures(settings, partial(describe_step, run, attempt), partial(report, writer, "failure"), state)


def report(writer: tf.summary.SummaryWriter, kind: str, step: int, text: str) -> None:
    """Tells the person and TensorBoard of a tick or a failure."""
    say(f"step {step:,}: {kind}: {text}")
    with writer.as_default(step):
        tf.summary.text(f"{kind}s", text)


def evaluate_now(run: Run, writer: tf.summary.SummaryWriter) -> tuple[dict[str, Any], list[str]]:
    """The metrics of the validation split with the weights of this moment, and samples for TensorBoard.

    The task's pictures of its answers go to TensorBoard, too.
    """
    with run.trainer.answering_weights():
        metrics, rows = run.evaluator("evaluate")
    with writer.as_default(run.trainer.optimizer.iterations.numpy()):
        found = run.evaluator
        for name, figure in run.task.pictures(found.answers, found.references, found.columns).items():
            tf.summary.image(f"validation/{name}", tf.io.decode_png(png_of(figure))[None])
    return metrics, ["\n\n".join(f"{name}: {value}" for name, value in row.items()) for row in rows[:NUM_SAMPLES]]


def choose(run: Run) -> dict[str, Any]:
    """Takes the best weights, or the mean of the best few where that measures better on the validation split."""
    best = run.checkpoints.best()
    first, name = f"step {best[0].progress['step']}", run.recipe.training.best_metric
    candidates, measured = {first: best[0].load("weights")}, {first: best[0].progress["validation"]}
    if len(best) > 1:
        steps = sorted(checkpoint.progress["step"] for checkpoint in best)
        mean = f"mean of steps {', '.join(map(str, steps))}"
        candidates[mean] = average(best)
        write_variables(run.trainer.stored_weights, candidates[mean], mean)
        measured[mean] = run.evaluator(f"evaluate {mean}")[0]
    chosen = max(measured, key=lambda description: score_of(measured[description], name))
    run.checkpoints.choose(candidates[chosen], {"chosen": chosen, "validation": measured[chosen]})
    say("; ".join(f"{description}: {name} {metrics[name]:.4g}" for description, metrics in measured.items()))
    return {"chosen": chosen, "validation": measured[chosen]}
