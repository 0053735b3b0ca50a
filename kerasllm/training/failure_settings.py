"""What a recipe can say in `training.on_failure`: what happens after a step that went wrong. Loads no TensorFlow.

    name       arguments of its own                what happens
    stop                                           the run ends, and says why
    skip       max_in_a_row                        the batch is left out
    roll_back  learning_rate_factor, max_times     the run goes on from the last whole checkpoint, more slowly

A step goes wrong when its loss or the norm of its gradient is not finite, or its loss is a spike. It is not applied,
whatever the policy. All have `spike_factor` and `spike_window_steps` besides.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kerasllm.settings import Settings


class BaseFailureSettings(Settings):
    """When a loss that is finite is a failure too."""

    spike_factor: float | None = Field(default=None, gt=1)
    """A loss above so many times the running mean of the steps before is a failure; null looks for none. A mean of 0
    or below, which some losses have, finds none either."""
    spike_window_steps: int = Field(default=100, ge=1)
    """Optimizer steps of that mean; no loss is a spike before so many have been applied."""


class StopSettings(BaseFailureSettings):
    """The run ends."""

    name: Literal["stop"] = "stop"


class SkipSettings(BaseFailureSettings):
    """The step is left out: weights, optimizer and average are as if it had not been, and the next batch comes."""

    name: Literal["skip"] = "skip"
    max_in_a_row: int = Field(default=10, ge=1)
    """Steps left out one after the other; one more ends the run, since then the batches are not the cause."""


class RollBackSettings(BaseFailureSettings):
    """The run goes on from its last whole checkpoint with a lower learning rate."""

    name: Literal["roll_back"] = "roll_back"
    learning_rate_factor: float = Field(default=0.5, gt=0, lt=1)
    """Of the learning rate for the rest of the run, each time."""
    max_times: int = Field(default=3, ge=1)
    """In the whole run; one more failure ends it."""


FailureSettings = Annotated[StopSettings | SkipSettings | RollBackSettings, Field(discriminator="name")]
