"""What happens after a step that went wrong: the run stops, leaves the batch out, or goes back to a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from kerasllm.errors import UserError
from kerasllm.training.callbacks import StepCallback
from kerasllm.training.failure_settings import FailureSettings
from kerasllm.training.step_guard import LossScale

NO_FAILURES = {"in_a_row": 0, "roll_backs": 0}


class RollBack(Exception):
    """Ends `fit`, which is to go on from the last whole checkpoint.

    Attributes:
        state: of `Failures`, with this one counted.
    """

    def __init__(self, state: dict[str, int]):
        super().__init__("to the last whole checkpoint")
        self.state = state


def what_went_wrong(logs: dict[str, float], spike_factor: float | None) -> str | None:
    """Why a step was not applied, in words; None if it was, or if float16 only needed another loss scale."""
    if logs["applied"]:
        return None
    if not math.isfinite(logs["loss"]):
        return f"loss is {logs['loss']:g}"
    if not math.isfinite(logs["gradient_norm"]):
        could_be_scale = logs.get("loss_scale", LossScale.LEAST) > LossScale.LEAST
        return None if could_be_scale else f"gradient_norm is {logs['gradient_norm']:g}"
    mean = logs["loss_limit"] / spike_factor
    return f"loss {logs['loss']:.4g} is a spike, more than {spike_factor:g} times the mean of {mean:.4g} before it"


class Failures(StepCallback):
    """Follows the policy of the recipe after a step that went wrong, before anything of it is evaluated or saved.

    Args:
        settings: `training.on_failure`.
        describe: writes down a step, given its number, what went wrong and its figures; returns where, in words.
        report: takes a step and a line of text, for the person and for TensorBoard.
        state: `in_a_row`, steps left out one after the other, and `roll_backs` of the run; saved with checkpoints.
    """

    def __init__(
        self,
        settings: FailureSettings,
        describe: Callable[[int, str, dict[str, float]], str],
        report: Callable[[int, str], None],
        state: dict[str, int],
    ):
        super().__init__()
        self.settings, self.describe, self.report, self.state = settings, describe, report, dict(state)

    def on_step(self, step: int, logs: dict[str, Any]) -> None:
        what = what_went_wrong(logs, self.settings.spike_factor)
        if what is None:
            self.state["in_a_row"] = 0 if logs["applied"] else self.state["in_a_row"]
            return
        written = self.describe(step, what, {name: float(value) for name, value in logs.items()})
        if self.settings.name == "skip" and self.state["in_a_row"] < self.settings.max_in_a_row:
            self.state["in_a_row"] += 1
            self.report(step, f"{what}; the step is left out; {written}")
        elif self.settings.name == "roll_back" and self.state["roll_backs"] < self.settings.max_times:
            self.state["roll_backs"] += 1
            times = f"{self.state['roll_backs']} of {self.settings.max_times}"
            factor = f"{self.settings.learning_rate_factor:g} times the learning rate"
            self.report(step, f"{what}; going back to the last checkpoint, with {factor} ({times}); {written}")
            raise RollBack(self.state)
        else:
            raise UserError(
                f"step {step:,}: {what}{self._exhausted()}; {written}. The step was not applied. Lower "
                "training.peak_learning_rate or training.clip_norm, and train in another --run-dir"
            )

    def _exhausted(self) -> str:
        """What the policy has done before it gave up."""
        if self.settings.name == "skip":
            return f", after {self.state['in_a_row']} steps in a row that were left out"
        return f", after going back {self.state['roll_backs']} times" if self.settings.name == "roll_back" else ""
