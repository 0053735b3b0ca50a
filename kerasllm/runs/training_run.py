"""The parts of a training run, put together from a recipe and its prepared data: the same ones each time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kerasllm.data.augmentation import AugmentedTraining, build_augmentation
from kerasllm.data.batching import Accumulation, BatchStream
from kerasllm.data.store import Examples, Prepared
from kerasllm.environment import compute_precision, seed_everything
from kerasllm.errors import UserError
from kerasllm.recipe import Recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.evaluation import Evaluator
from kerasllm.runs.pretrained import load_pretrained
from kerasllm.runs.teachers import build_teachers, helpers_of
from kerasllm.runs.trained_run import build_model, build_task
from kerasllm.training.checkpoints import Checkpoints
from kerasllm.training.distillation import Teacher
from kerasllm.training.normalization_gates import build_gates
from kerasllm.training.objectives import PhasedObjective, build_objective, check_objective
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.schedules import build_schedule
from kerasllm.training.settings import StepPlan, TrainingSettings
from kerasllm.training.step_guard import LossScale, StepGuard
from kerasllm.training.ticks import Tick, Timeline, TimelineSchedule, average_decay, resolve_ticks, values_of
from kerasllm.training.trainer import Trainer


@dataclass
class Run:
    """The parts of a training run, put together by `build_run`."""

    directory: RunDirectory
    recipe: Recipe
    strategy: tf.distribute.Strategy
    task: Any
    trainer: Trainer
    stream: BatchStream
    plan: StepPlan
    schedule: TimelineSchedule
    timeline: Timeline
    evaluator: Evaluator
    checkpoints: Checkpoints
    teachers: dict[str, str]
    """Of a distillation, by name: a fingerprint of the weights of each."""


def build_run(
    directory: RunDirectory,
    recipe: Recipe,
    prepared: Prepared,
    strategy: tf.distribute.Strategy,
    data_dir: Path | str | None = None,
    micro_batches: int = 1,
) -> Run:
    """Builds the model with its first weights, the optimizer and the batches, the same ones each time.

    Raises:
        UserError: the parts do not fit each other, or the weights that the recipe begins with do not fit the model.
    """
    seed_everything(recipe.seed)
    settings = recipe.training
    examples = prepared.examples("train")
    replicas = strategy.num_replicas_in_sync
    stream = BatchStream(examples, recipe.batching, recipe.seed, replicas, micro_batches)
    plan = plan_steps(recipe, stream)
    check_splits(recipe, stream)
    places = [recipe.place("ticks", index) for index in range(len(recipe.ticks))]
    ticks = resolve_ticks(recipe.ticks, places, plan.epoch_starts, plan.total_steps)
    with strategy.scope():
        task = build_task(recipe, prepared.directory)
        stream.augmentation = build_augmentations(recipe, ticks, task, examples)
        stream.corruption = task.corruption()
        with compute_precision(settings.precision):
            model = build_model(task, recipe)
            task.begin(examples)
            sample = stream.parts(stream.batches(0)[0][:1])[0]
            teachers, fingerprints = build_teachers(recipe, task, prepared.directory, sample)
        trained = [*model.trainable_variables, *helpers_of(teachers.values())]
        schedule, optimizer = build_scheduled_optimizer(recipe, ticks, plan, trained)
        objective = build_objectives(recipe, ticks, task, model, stream, optimizer.iterations, teachers)
        timeline = Timeline(model, ticks, objective)
        trainer = build_trainer(recipe, ticks, plan, model, objective, teachers)
        trainer.compile(optimizer=optimizer)
    held_out = prepared.examples("validation")
    evaluator = Evaluator(task, model, held_out, BatchStream(held_out, recipe.batching, recipe.seed))
    checkpoints = Checkpoints(directory, settings.keep_checkpoints, settings.average_checkpoints)
    load_pretrained(recipe, task, data_dir)
    parts = (task, trainer, stream, plan, schedule, timeline, evaluator, checkpoints, fingerprints)
    return Run(directory, recipe, strategy, *parts)


def build_trainer(
    recipe: Recipe,
    ticks: list[Tick],
    plan: StepPlan,
    model: keras.Model,
    objective: PhasedObjective,
    teachers: dict[str, Teacher],
) -> Trainer:
    """What takes the steps of a timeline.

    Raises:
        UserError: weights shall go on from an average, and none is kept.
    """
    settings, decay = recipe.training, average_decay(recipe.training, ticks)
    if settings.lookahead_every_steps is not None and decay is None:
        place = recipe.place("training", "lookahead_every_steps")
        raise UserError(f"{place}: there is no average to go on from; give training.average_decay, too")
    return Trainer(
        model,
        objective,
        settings.clip_norm,
        settings.l1,
        settings.l2,
        decay,
        build_gates(model, ticks, plan.total_steps),
        build_guard(settings),
        helpers_of(teachers.values()),
        settings.lookahead_every_steps,
    )


def build_guard(settings: TrainingSettings) -> StepGuard:
    """What decides which steps count; it scales the loss for float16 alone."""
    failure = settings.on_failure
    loss_scale = LossScale() if settings.precision == "float16" else None
    return StepGuard(failure.spike_factor, failure.spike_window_steps, loss_scale)


def build_scheduled_optimizer(
    recipe: Recipe, ticks: list[Tick], plan: StepPlan, variables: list[keras.Variable]
) -> tuple[TimelineSchedule, keras.optimizers.Optimizer]:
    """The learning rate of a recipe's timeline, and the optimizer that follows it.

    Raises:
        UserError: one of them does not fit the length of the training or the variables of the model.
    """
    settings = recipe.training
    try:
        first = build_schedule(settings.schedule, settings.peak_learning_rate, plan.total_steps)
    except UserError as error:
        raise misfit(recipe, "schedule", error) from error
    schedule = TimelineSchedule(first, ticks, plan.total_steps)
    try:
        return schedule, build_optimizer(settings.optimizer, schedule, variables)
    except UserError as error:
        raise misfit(recipe, "optimizer", error) from error


def build_augmentations(recipe: Recipe, ticks: list[Tick], task: Any, examples: Examples) -> AugmentedTraining | None:
    """What changes the training examples, and when; None if nothing does.

    Raises:
        UserError: an augmentation does not fit the task, or a tick switches what is not there.
    """
    for tick in ticks:
        if tick.settings.augmentation is not None and not recipe.augmentation:
            raise UserError(f"{tick.place}.augmentation: the recipe has no list `augmentation` to be switched; add one")
    built = []
    for index, settings in enumerate(recipe.augmentation):
        try:
            built.append(build_augmentation(settings, task.augmented_inputs, task.tokenizer))
        except UserError as error:
            raise UserError(f"{recipe.place('augmentation', index)}: {error}") from error
    check_mixing(recipe, task)
    changes = tuple(values_of("augmentation", True, ticks))
    return AugmentedTraining(tuple(built), recipe.seed, changes, examples) if built else None


def check_mixing(recipe: Recipe, task: Any) -> None:
    """Raise `UserError` where examples are to be mixed and cannot be, or twice."""
    mixing = [index for index, settings in enumerate(recipe.augmentation) if settings.name in ("mixup", "cutmix")]
    for index in mixing:
        place, name = recipe.place("augmentation", index), recipe.augmentation[index].name
        if not task.mixes_labels:
            raise UserError(f"{place}: {name}: this task has no labels to be mixed; leave it")
        if index != mixing[0]:
            raise UserError(f"{place}: {name}: examples are mixed already by {recipe.augmentation[mixing[0]].name}")


def build_objectives(
    recipe: Recipe,
    ticks: list[Tick],
    task: Any,
    model: keras.Model,
    stream: BatchStream,
    step: keras.Variable,
    teachers: dict[str, Teacher],
) -> PhasedObjective:
    """What is minimised in each phase of the training.

    Raises:
        UserError: an objective does not fit the model or its input.
    """
    settings = recipe.training
    inputs = {name: spec.dtype for name, spec in stream.dataset().element_spec[0].items()}
    check_objective(settings.objective, model, inputs, recipe.place("training", "objective"))
    for tick in ticks:
        if tick.settings.objective is not None:
            check_objective(tick.settings.objective, model, inputs, f"{tick.place}.objective")
    objectives = values_of("objective", settings.objective, ticks)
    smoothings = values_of("label_smoothing", settings.label_smoothing, ticks)
    phases = []
    for first in sorted({first for first, _ in (*objectives, *smoothings)}):
        objective, smoothing = (
            next(value for start, value in reversed(values) if start <= first) for values in (objectives, smoothings)
        )
        phases.append((first, build_objective(objective, task, smoothing, recipe.seed, step, teachers)))
    return PhasedObjective(phases)


def check_splits(recipe: Recipe, stream: BatchStream) -> None:
    """Compares what a batch is split into and what is accumulated with the batches that there are.

    Raises:
        UserError: every batch has fewer examples than parts, or an epoch fewer batches than a step shall take.
    """
    batches, settings = stream.batches(0), recipe.training
    examples, parts = max(map(len, batches)), stream.num_replicas * settings.micro_batches
    if parts > examples and (settings.micro_batches > 1 or settings.num_replicas):
        raise UserError(
            f"{recipe.place('training', 'micro_batches')}: {settings.micro_batches} on each of {stream.num_replicas} "
            f"replicas are {parts} parts of a batch, which has at most {examples} examples; take fewer"
        )
    wanted = {("training",): settings.accumulate_batches}
    wanted |= {("ticks", index): tick.accumulate_batches or 1 for index, tick in enumerate(recipe.ticks)}
    for keys, number in wanted.items():
        if number > len(batches):
            place = recipe.place(*keys, "accumulate_batches")
            raise UserError(f"{place}: {number} is more than the {len(batches)} batches of an epoch; lower it")


def misfit(recipe: Recipe, section: str, error: UserError) -> UserError:
    """The error of a section of `training`, which begins with a key of it, with the place of that key."""
    key = re.match(r"\w+", str(error))[0]
    return UserError(recipe.place("training", section, key) + str(error).removeprefix(key))


def plan_steps(recipe: Recipe, stream: BatchStream) -> StepPlan:
    """Turns the durations of a recipe into optimizer steps, now that the batches of each epoch are known.

    The steps of an epoch depend on the batches that each accumulates, and the ticks that change these may come with an
    epoch: so the epochs are gone through in their order.
    """
    settings = recipe.training
    changes = {0: settings.accumulate_batches}
    growing = [tick for tick in recipe.ticks if tick.accumulate_batches]
    changes |= {tick.at_step: tick.accumulate_batches for tick in growing if tick.at_step is not None}
    starts = [0]
    while len(starts) <= settings.train_epochs if settings.train_epochs else starts[-1] < settings.train_steps:
        epoch = len(starts) - 1
        for tick in growing:
            if tick.at_epoch == epoch:
                changes[starts[-1]] = tick.accumulate_batches
        stream.accumulation = Accumulation(tuple(sorted(changes.items())))
        starts.append(starts[-1] + stream.steps_in_epoch(epoch, starts[-1]))
    total = settings.train_steps or starts[-1]
    if settings.evaluate_every_steps:
        evaluations = range(settings.evaluate_every_steps, total, settings.evaluate_every_steps)
    else:
        every = settings.evaluate_every_epochs or 1
        evaluations = [start for start in starts[every::every] if start < total]
    return StepPlan(tuple(starts), frozenset([*evaluations, total]), total)
