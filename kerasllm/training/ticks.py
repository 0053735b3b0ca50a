"""Ticks: a timeline that switches phases inside one `fit`.

Every tick but a plateau happens at a step that is known before training starts. What holds at a step follows from the
timeline and the step alone, so a run that goes on needs no state of it, and the learning rate is one function of the
step. A plateau is found by the evaluations; how often each has happened is saved with the checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training.callbacks import StepCallback, score_of
from kerasllm.training.objectives import PhasedObjective
from kerasllm.training.schedules import build_schedule
from kerasllm.training.settings import TrainingSettings
from kerasllm.training.tick_settings import TickSettings
from kerasllm.training.variable_paths import frozen_weights, matches_of


@dataclass(frozen=True)
class Tick:
    """A tick of the recipe at its step.

    Args:
        step: optimizer steps done when it happens; None for a plateau.
        place: where it stands, `file:line: ticks[0]`.
    """

    step: int | None
    settings: TickSettings
    place: str


def resolve_ticks(
    ticks: Sequence[TickSettings], places: Sequence[str], epoch_starts: Sequence[int], total_steps: int
) -> list[Tick]:
    """Gives every tick its step, in the order of the steps; those at one step in the order of the recipe.

    Raises:
        UserError: a tick comes after the end of the training, or two of them set one thing at one moment.
    """
    resolved: list[Tick] = []
    for settings, place in zip(ticks, places, strict=True):
        step = settings.at_step
        if settings.at_share is not None:
            step = math.floor(settings.at_share * total_steps)
        if settings.at_epoch is not None:
            step = epoch_starts[settings.at_epoch] if settings.at_epoch < len(epoch_starts) - 1 else total_steps
        if step is not None and step >= total_steps:
            raise UserError(f"{place}: comes after the end of the training, which has {total_steps:,} steps; move it")
        _check_alone(settings, step, place, resolved)
        resolved.append(Tick(step, settings, place))
    return sorted(resolved, key=lambda tick: -1 if tick.step is None else tick.step)


ADDING = {"freeze", "unfreeze", "learning_rate_factor", "open_normalization", "close_normalization"}
"""Actions that several ticks of one moment can have; each of the others sets one value."""


def _check_alone(settings: TickSettings, step: int | None, place: str, others: Sequence[Tick]) -> None:
    """Raises UserError if another tick of the step sets what these settings set."""
    for other in others:
        both = settings.actions.keys() & other.settings.actions.keys() - ADDING
        if step is not None and other.step == step and both:
            first = other.place.rpartition(" ")[2]
            raise UserError(f"{place}.{min(both)}: is set at step {step:,} by {first} too; leave one of them out")


class TimelineSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a whole timeline: each piece from its step on, times what the plateaus have left of it, and
    what going back to a checkpoint has.

    Args:
        first: the schedule that the training begins with.
        ticks: from `resolve_ticks`.
        total_steps: of the whole training.

    Raises:
        UserError: a schedule of a tick is longer than the steps that are left.
    """

    def __init__(self, first: keras.optimizers.schedules.LearningRateSchedule, ticks: Sequence[Tick], total_steps: int):
        super().__init__()
        self.pieces: list[tuple[int, Callable, float]] = [(0, first, 1.0)]
        for tick in ticks:
            if tick.step is not None:
                self._add_piece(tick, total_steps)
        self.plateau_factor = tf.Variable(1.0, trainable=False, name="plateau_factor")
        self.roll_back_factor = tf.Variable(1.0, trainable=False, name="roll_back_factor")

    def _add_piece(self, tick: Tick, total_steps: int) -> None:
        _, schedule, factor = self.pieces[-1]
        factor *= tick.settings.learning_rate_factor or 1.0
        if tick.settings.schedule is not None:
            rate = float(schedule(tf.constant(tick.step))) * factor
            try:
                after = build_schedule(tick.settings.schedule, rate, total_steps - tick.step)
            except UserError as error:
                raise UserError(f"{tick.place}.schedule.{error}") from error
            schedule, factor = (lambda step: after(step - tick.step)), 1.0
        self.pieces.append((tick.step, schedule, factor))

    def __call__(self, step):
        rate = tf.constant(0.0)
        for start, schedule, factor in self.pieces:
            rate = tf.where(step >= start, tf.cast(schedule(step), tf.float32) * factor, rate)
        return rate * self.plateau_factor * self.roll_back_factor

    def get_config(self) -> dict:
        raise NotImplementedError("a timeline is made from the recipe")


def values_of(name: str, first: Any, ticks: Sequence[Tick]) -> list[tuple[int, Any]]:
    """What an action that sets a value makes of it: (first step, value) in the order of the steps, the first at 0."""
    changes = {0: first}
    for tick in ticks:
        if tick.step is not None and getattr(tick.settings, name) is not None:
            changes[tick.step] = getattr(tick.settings, name)
    return list(changes.items())


def average_decay(settings: TrainingSettings, ticks: Sequence[Tick]) -> Callable[[tf.Tensor], tf.Tensor] | None:
    """The decay of the moving average, by the steps done with the one that is averaged: 0 until the average begins,
    and for its first step, whose weights it copies. None where no average is asked for."""
    changes = values_of("average_decay", settings.average_decay or 0.0, ticks)
    if not any(decay for _, decay in changes):
        return None

    def decay_at(step: tf.Tensor) -> tf.Tensor:
        decay = tf.constant(0.0)
        for start, value in changes:
            decay = tf.where(step > start + 1, value, decay)
        return decay

    return decay_at


class Timeline:
    """What is frozen, dropped, seen and minimised at each step of a model's training.

    Args:
        model: built; what is frozen in it stays frozen in all phases.
        ticks: from `resolve_ticks`.
        objective: that the model is trained on; None leaves it.

    Raises:
        UserError: a pattern matches no variable, or one that is frozen for good, one moment both freezes and unfreezes
            a variable, nothing is left that is trained, there is no dropout that could be changed, or the model sees
            no pictures of other sizes.
    """

    def __init__(self, model: keras.Model, ticks: Sequence[Tick], objective: PhasedObjective | None = None):
        self.model, self.ticks, self.objective = model, ticks, objective or PhasedObjective([(0, None)])
        self._variables = {v.path.removeprefix(f"{model.name}/"): v for v in model.trainable_variables}
        self._frozen_for_good = [v.path.removeprefix(f"{model.name}/") for v in frozen_weights(model)]
        self._dropouts = [(layer, layer.rate) for layer in model._flatten_layers() if getattr(layer, "rate", 0)]
        self._check()

    @property
    def steps(self) -> list[int]:
        """The steps at which a phase begins, the first at 0."""
        return sorted({0, *(tick.step for tick in self.ticks if tick.step is not None)})

    def matching(self, pattern: str, place: str) -> set[str]:
        """The paths that a pattern matches."""
        paths = list(self._variables)
        try:
            found = matches_of(pattern, paths)
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        return {path for path, matches in zip(paths, found, strict=True) if matches}

    def _check(self) -> None:
        touched: dict[tuple[int, str], str] = {}
        for tick in self.ticks:
            for action in ("freeze", "unfreeze"):
                pattern = getattr(tick.settings, action)
                self._check_is_trained(pattern, action, f"{tick.place}.{action}")
                for path in self.matching(pattern, f"{tick.place}.{action}") if pattern else ():
                    before = touched.setdefault((tick.step, path), action)
                    if before != action:
                        raise UserError(f"{tick.place}: {path} is both frozen and unfrozen at step {tick.step:,}")
            if tick.settings.dropout is not None and not self._dropouts:
                raise UserError(f"{tick.place}.dropout: the model has no dropout; begin with a small rate of it")
            if tick.settings.picture_scale is not None and getattr(self.model, "picture_scale", None) is None:
                raise UserError(f"{tick.place}.picture_scale: the model sees nothing of another size; leave it out")
            if tick.settings.freeze and len(self.frozen(tick.step)) == len(self._variables):
                raise UserError(f"{tick.place}.freeze: nothing is left to be trained; freeze less")

    def _check_is_trained(self, pattern: str | None, action: str, place: str) -> None:
        """Raises UserError if a pattern is to unfreeze what `tuning` has frozen, or to freeze nothing else."""
        found = [path for path in self._frozen_for_good if pattern and re.search(pattern, path)]
        if not found or (action == "freeze" and any(re.search(pattern, path) for path in self._variables)):
            return
        named = f"{found[0]} is frozen for the whole run by tuning"
        raise UserError(f"{place}: {named}; name only what it trains, such as {next(iter(self._variables))}")

    def frozen(self, step: int) -> set[str]:
        """Paths of the variables that are not trained after `step` steps."""
        frozen: set[str] = set()
        for tick in self._until(step):
            if tick.settings.freeze:
                frozen |= self.matching(tick.settings.freeze, tick.place)
            if tick.settings.unfreeze:
                frozen -= self.matching(tick.settings.unfreeze, tick.place)
        return frozen

    def trainable_parameters(self, step: int) -> int:
        """Numbers that are trained after `step` steps."""
        frozen = self.frozen(step)
        return sum(math.prod(v.shape) for path, v in self._variables.items() if path not in frozen)

    def set_phase(self, step: int) -> bool:
        """Makes the model what it is after `step` steps; returns whether that needs a new trace of its graphs."""
        before = self._phase()
        frozen = self.frozen(step)
        for path, variable in self._variables.items():
            variable.trainable = path not in frozen
        for layer, rate in self._dropouts:
            layer.rate = values_of("dropout", rate, self._until(step))[-1][1]
        if any(tick.settings.picture_scale for tick in self.ticks):
            self.model.picture_scale = values_of("picture_scale", 1.0, self._until(step))[-1][1]
        self.objective.set_phase(step)
        return self._phase() != before

    def _phase(self) -> tuple:
        trainable = [variable.trainable for variable in self._variables.values()]
        scale = getattr(self.model, "picture_scale", None)
        return trainable, [layer.rate for layer, _ in self._dropouts], scale, self.objective.objective

    def changes_at(self, step: int) -> str:
        """What the ticks of a step change, in words."""
        found = [tick.settings.actions for tick in self.ticks if tick.step == step]
        return ", ".join(f"{name} {_shown(value)}" for actions in found for name, value in actions.items())

    def rows(self) -> list[tuple[str, str, str]]:
        """The timeline as a table: when, what, trainable parameters."""
        rows = [(f"{s:,}", self.changes_at(s) or "start", f"{self.trainable_parameters(s):,}") for s in self.steps]
        for tick in self.ticks:
            if tick.settings.when_plateau:
                plateau = tick.settings.when_plateau
                when = f"{plateau.patience_evaluations} evaluations without a better {plateau.metric}"
                rows.append((when, f"learning_rate_factor {tick.settings.learning_rate_factor}", ""))
        return rows

    def _until(self, step: int) -> list[Tick]:
        return [tick for tick in self.ticks if tick.step is not None and tick.step <= step]


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else getattr(value, "name", None) or str(value)


class Ticking(StepCallback):
    """Lets the ticks of a timeline happen: switches phases after their steps, and watches for plateaus.

    Args:
        timeline: of the trainer's model.
        schedule: whose rate the plateaus lower.
        last_metrics: gives the metrics of the evaluation after this step, or None where there was none.
        report: takes a step and a line of text, for the person and for TensorBoard.
    """

    def __init__(
        self,
        timeline: Timeline,
        schedule: TimelineSchedule,
        last_metrics: Callable[[], dict[str, Any] | None],
        report: Callable[[int, str], None],
    ):
        super().__init__()
        self.timeline, self.schedule, self.last_metrics, self.report = timeline, schedule, last_metrics, report
        self._plateaus = [tick for tick in timeline.ticks if tick.settings.when_plateau]
        self.state: list[dict[str, Any]] = [{"best": None, "waited": 0, "happened": 0} for _ in self._plateaus]

    def restore(self, state: list[dict[str, Any]], step: int) -> None:
        """Makes everything what it was after `step` steps."""
        self.state = state or self.state
        self.timeline.set_phase(step)
        self._set_plateau_factor()

    def on_step(self, step: int, logs: dict[str, float]) -> None:
        metrics = self.last_metrics()
        if metrics is not None:
            for tick, state in zip(self._plateaus, self.state, strict=True):
                self._watch(step, tick, state, metrics)
        if step in self.timeline.steps:
            if self.timeline.set_phase(step):
                self.model.make_train_function(force=True)
            self.report(step, f"{self.timeline.changes_at(step)}; {self.timeline.trainable_parameters(step):,} trained")

    def _watch(self, step: int, tick: Tick, state: dict[str, Any], metrics: dict[str, Any]) -> None:
        plateau = tick.settings.when_plateau
        score = score_of(metrics, plateau.metric.removeprefix("validation_"))
        gained = state["best"] is None or score > state["best"]
        state.update(best=score if gained else state["best"], waited=0 if gained else state["waited"] + 1)
        if state["waited"] >= plateau.patience_evaluations:
            state.update(waited=0, happened=state["happened"] + 1)
            self._set_plateau_factor()
            self.report(step, f"plateau of {plateau.metric}, learning_rate_factor {tick.settings.learning_rate_factor}")

    def _set_plateau_factor(self) -> None:
        powers = [
            tick.settings.learning_rate_factor ** state["happened"]
            for tick, state in zip(self._plateaus, self.state, strict=True)
        ]
        self.schedule.plateau_factor.assign(math.prod(powers))
