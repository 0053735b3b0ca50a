"""What a recipe can say in its section `training`. Loads no TensorFlow.

A duration carries its unit in its name and is turned into optimizer steps once, by `StepPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from kerasllm.settings import Settings
from kerasllm.training.objective_settings import ObjectiveSettings, SupervisedSettings

LOWER_IS_BETTER = ("loss", "perplexity", "distance")
"""Metrics that are better when lower; all others are better when higher."""


class OptimizerSettings(Settings):
    """AdamW, [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    """Biases and the parameters of normalization layers are not decayed."""
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.98, ge=0, lt=1)
    epsilon: float = Field(default=1e-9, gt=0)


class ScheduleSettings(Settings):
    """How the learning rate goes up to `training.peak_learning_rate` and down again; see `training/schedules.py`."""

    name: Literal["constant", "inverse_square_root", "cosine"] = "inverse_square_root"
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps from 0 to the peak, in a straight line."""


class TrainingSettings(Settings):
    """How the model is trained."""

    train_epochs: int | None = Field(default=None, ge=1)
    """Passes over the training split; give either this or `train_steps`."""
    train_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    peak_learning_rate: float = Field(default=1e-3, gt=0)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    objective: ObjectiveSettings = SupervisedSettings()
    """What is minimised; see `training/objective_settings.py`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the probability that is spread evenly over the vocabulary."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Greatest norm of the gradient of the whole global batch, all variables together; null leaves it."""
    num_replicas: int | None = Field(default=None, ge=1)
    """Replicas that share each batch; null takes every GPU, or the CPU as one."""
    evaluate_every_epochs: int | None = Field(default=None, ge=1)
    """Epochs between evaluations on the validation split; give either this or `evaluate_every_steps`."""
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    checkpoint_every_steps: int = Field(default=500, ge=1)
    """Optimizer steps; a checkpoint is also written at each evaluation and at the end."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """The last ones, beside those of the best evaluations; two, so that one is left if the other is damaged."""
    best_metric: str = "loss"
    """Metric of the validation split that chooses the weights, see `LOWER_IS_BETTER`."""
    stop_after_evaluations_without_gain: int | None = Field(default=None, ge=1)
    """Evaluations in a row without a better `best_metric`; null never stops early."""
    average_checkpoints: int = Field(default=1, ge=1)
    """Weights of the best evaluations that are averaged at the end, if that is better than the best alone."""

    @model_validator(mode="after")
    def _check_durations(self) -> TrainingSettings:
        if (self.train_epochs is None) == (self.train_steps is None):
            raise ValueError("give either train_epochs or train_steps")
        if self.evaluate_every_epochs is not None and self.evaluate_every_steps is not None:
            raise ValueError("give either evaluate_every_epochs or evaluate_every_steps")
        if self.train_steps is not None and self.schedule.warmup_steps >= self.train_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is not below train_steps {self.train_steps}"
            )
        return self


@dataclass(frozen=True)
class StepPlan:
    """The durations of a run in optimizer steps.

    Args:
        epoch_starts: step with which each epoch begins; the last one is the end of the run.
        evaluation_steps: after these steps the model is evaluated, the last step among them.
        total_steps: steps of the whole run.
    """

    epoch_starts: tuple[int, ...]
    evaluation_steps: frozenset[int]
    total_steps: int

    def locate(self, step: int) -> tuple[int, int]:
        """The (epoch, batch) that comes after `step` optimizer steps."""
        epoch = max(i for i, start in enumerate(self.epoch_starts[:-1]) if start <= min(step, self.total_steps - 1))
        return epoch, step - self.epoch_starts[epoch]
