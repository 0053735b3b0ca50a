"""What a recipe can say in `training.schedule`: a schedule by name, with its own arguments. Loads no TensorFlow.

    name                 arguments of its own
    constant
    step                 every_steps, factor
    exponential          to
    linear               to
    cosine               to
    inverse_square_root
    one_cycle            up_share, start_divisor, end_divisor
    warmup_stable_decay  decay_share, decay, to

All have `warmup_steps` besides, and go by `training.peak_learning_rate`. The formulas stand in `schedules.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kerasllm.settings import Settings


class BaseScheduleSettings(Settings):
    """What every schedule has."""

    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps from 0 to where the schedule begins, in a straight line."""


class ConstantSettings(BaseScheduleSettings):
    """The peak throughout."""

    name: Literal["constant"] = "constant"


class StepSettings(BaseScheduleSettings):
    """Down in steps."""

    name: Literal["step"] = "step"
    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps at the same rate; null takes a third of those after the warm-up."""
    factor: float = Field(default=0.1, gt=0, le=1)
    """Of the rate, at each step down."""


class ExponentialSettings(BaseScheduleSettings):
    """Down by the same share at each step."""

    name: Literal["exponential"] = "exponential"
    to: float = Field(default=0.01, gt=0, le=1)
    """Share of the peak at the end of the run."""


class LinearSettings(BaseScheduleSettings):
    """Down in a straight line."""

    name: Literal["linear"] = "linear"
    to: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at the end of the run."""


class CosineSettings(BaseScheduleSettings):
    """Down along half a cosine."""

    name: Literal["cosine"] = "cosine"
    to: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at the end of the run."""


class InverseSquareRootSettings(BaseScheduleSettings):
    """Down with the root of the step."""

    name: Literal["inverse_square_root"] = "inverse_square_root"


class OneCycleSettings(BaseScheduleSettings):
    """Up and down once; it needs no warm-up of its own."""

    name: Literal["one_cycle"] = "one_cycle"
    up_share: float = Field(default=0.3, gt=0, lt=1)
    """Of the steps after the warm-up, until the peak."""
    start_divisor: float = Field(default=25.0, ge=1)
    """It begins with peak / start_divisor."""
    end_divisor: float = Field(default=10_000.0, ge=1)
    """It ends with peak / end_divisor."""


class WarmupStableDecaySettings(BaseScheduleSettings):
    """The peak for most of the run, then down."""

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """Of all steps of the run, at its end."""
    decay: Literal["linear", "one_minus_square_root"] = "one_minus_square_root"
    """The way down."""
    to: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at the end of the run."""


ScheduleSettings = Annotated[
    ConstantSettings
    | StepSettings
    | ExponentialSettings
    | LinearSettings
    | CosineSettings
    | InverseSquareRootSettings
    | OneCycleSettings
    | WarmupStableDecaySettings,
    Field(discriminator="name"),
]
