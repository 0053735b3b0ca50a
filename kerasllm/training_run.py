"""The parts of a training run, put together from a recipe and its prepared data: the same ones each time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kerasllm.data.batching import Accumulation, BatchStream
from kerasllm.data.store import Prepared
from kerasllm.environment import compute_precision, seed_everything
from kerasllm.errors import UserError
from kerasllm.evaluation import Evaluator
from kerasllm.recipe import Recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.trained_run import build_task
from kerasllm.training.checkpoints import Checkpoints
from kerasllm.training.objectives import build_objective
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.schedules import build_schedule
from kerasllm.training.settings import StepPlan
from kerasllm.training.ticks import Tick, Timeline, TimelineSchedule, average_decay, resolve_ticks
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


def build_run(
    directory: RunDirectory,
    recipe: Recipe,
    prepared: Prepared,
    strategy: tf.distribute.Strategy,
    micro_batches: int = 1,
) -> Run:
    """Builds the model, the optimizer and the batches, the same ones each time."""
    seed_everything(recipe.seed)
    settings = recipe.training
    examples = prepared.examples("train")
    replicas = strategy.num_replicas_in_sync
    stream = BatchStream(examples, recipe.batching, recipe.seed, replicas, micro_batches)
    plan = plan_steps(recipe, stream)
    places = [recipe.place("ticks", index) for index in range(len(recipe.ticks))]
    ticks = resolve_ticks(recipe.ticks, places, plan.epoch_starts, plan.total_steps)
    with strategy.scope():
        task = build_task(recipe, prepared.tokenizer_directory)
        with compute_precision(settings.precision):
            model = task.build_model()
        timeline = Timeline(model, ticks)
        schedule, optimizer = build_scheduled_optimizer(recipe, ticks, plan, model.trainable_variables)
        objective = build_objective(
            settings.objective, task, settings.label_smoothing, recipe.seed, optimizer.iterations
        )
        trainer = Trainer(
            model, objective, settings.clip_norm, settings.l1, settings.l2, average_decay(settings, ticks)
        )
        trainer.compile(optimizer=optimizer)
    held_out = prepared.examples("validation")
    evaluator = Evaluator(task, model, held_out, BatchStream(held_out, recipe.batching, recipe.seed))
    checkpoints = Checkpoints(directory, settings.keep_checkpoints, settings.average_checkpoints)
    return Run(directory, recipe, strategy, task, trainer, stream, plan, schedule, timeline, evaluator, checkpoints)


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
