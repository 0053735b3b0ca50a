"""What a recipe can say in its section `training`. Loads no TensorFlow.

A duration carries its unit in its name and is turned into optimizer steps once, by `StepPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from kerasllm.settings import Settings
from kerasllm.training.failure_settings import FailureSettings, StopSettings
from kerasllm.training.objective_settings import ObjectiveSettings, SupervisedSettings
from kerasllm.training.optimizer_settings import AdamWSettings, OptimizerSettings
from kerasllm.training.schedule_settings import InverseSquareRootSettings, ScheduleSettings

LOWER_IS_BETTER = ("loss", "perplexity", "distance", "reconstruction", "divergence")
"""Metrics that are better when lower; all others are better when higher."""


class TrainingSettings(Settings):
    """How the model is trained."""

    train_epochs: int | None = Field(default=None, ge=1)
    """Passes over the training split; give either this or `train_steps`."""
    train_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps; 0 takes pretrained weights as they are."""
    peak_learning_rate: float = Field(default=1e-3, gt=0)
    optimizer: OptimizerSettings = AdamWSettings()
    """By name, with its own arguments: see `optimizer_settings.py`."""
    schedule: ScheduleSettings = InverseSquareRootSettings()
    """By name, with its own arguments: see `schedule_settings.py`."""
    objective: ObjectiveSettings = SupervisedSettings()
    """What is minimised, by name: see `objective_settings.py`."""
    l1: float = Field(default=0.0, ge=0)
    """Penalty l1 * sum |w| over kernels and tables, not biases and norms; its gradient is clipped with the rest."""
    l2: float = Field(default=0.0, ge=0)
    """Penalty l2 / 2 * sum w^2 over the same; unlike `optimizer.weight_decay` it goes through the optimizer."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the probability that is spread evenly over the vocabulary."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Greatest norm of the gradient of the whole global batch, all variables together; null leaves it."""
    accumulate_batches: int = Field(default=1, ge=1)
    """Planned batches, of `batching.tokens_per_batch` each, that make one optimizer step."""
    micro_batches: int = Field(default=1, ge=1)
    """Parts that a replica takes its share of a planned batch in, one after the other: less memory, the same step."""
    average_decay: float | None = Field(default=None, ge=0, lt=1)
    """Per step, of a moving average of the weights, which then is what answers; null keeps none."""
    lookahead_every_steps: int | None = Field(default=None, ge=2)
    """Optimizer steps after which the weights go on from their average, so that what they do in between is tried and
    only partly followed ([Zhang et al., 2019](https://arxiv.org/abs/1907.08610)); null leaves them."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the matrix products while training; weights, sums and what is published are float32 in any case. bfloat16 is
    fast where the processor has it (AMX, AVX-512 BF16, GPUs from Ampere on). float16, for older GPUs, has a loss scale
    that finds its value by itself: a step whose gradient overflows is left out, and the next one has half the scale."""
    on_failure: FailureSettings = StopSettings()
    """What happens after a step that went wrong, by name: see `failure_settings.py`."""
    num_replicas: int | None = Field(default=None, ge=1)
    """Replicas that share each batch; null takes every GPU or, without one, `cpu_replicas`."""
    cpu_replicas: int = Field(default=1, ge=1)
    """Replicas that share the cores of a machine without a GPU. ResNet-20 is a fifth faster with one a core."""
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
        if self.train_steps and self.schedule.warmup_steps >= self.train_steps:
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
        """The epoch that comes after `step` optimizer steps, and the steps of it that are done."""
        epoch = max(i for i, start in enumerate(self.epoch_starts[:-1]) if start <= min(step, self.total_steps - 1))
        return epoch, step - self.epoch_starts[epoch]
