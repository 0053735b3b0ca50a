"""What follows a step that went wrong: the policies, at their bounds."""

import math

import pytest

from kerasllm.errors import UserError
from kerasllm.training.failure_settings import RollBackSettings, SkipSettings, StopSettings
from kerasllm.training.failures import NO_FAILURES, Failures, RollBack, what_went_wrong
from kerasllm.training.step_guard import LossScale

GOOD = {"loss": 2.0, "gradient_norm": 1.0, "applied": 1.0}
BAD = {"loss": math.nan, "gradient_norm": math.nan, "applied": 0.0}


@pytest.mark.parametrize(
    ("logs", "what"),
    [
        (GOOD, None),
        (BAD, "loss is nan"),
        ({**BAD, "loss": math.inf}, "loss is inf"),
        ({**BAD, "loss": 2.0, "gradient_norm": math.inf}, "gradient_norm is inf"),
        ({**BAD, "loss": 2.0, "gradient_norm": math.inf, "loss_scale": 8.0}, None),
        ({**BAD, "loss": 2.0, "gradient_norm": math.inf, "loss_scale": LossScale.LEAST}, "gradient_norm is inf"),
        ({**BAD, "loss_scale": 8.0}, "loss is nan"),
        (
            {"loss": 9.0, "gradient_norm": 1.0, "applied": 0.0, "loss_limit": 6.0},
            "loss 9 is a spike, more than 3 times the mean of 2 before it",
        ),
    ],
    ids=["good", "nan", "inf", "gradient", "overflow", "least_scale", "nan_in_float16", "spike"],
)
def test_what_went_wrong(logs, what):
    assert what_went_wrong(logs, 3.0) == what


def failures_of(settings, state=NO_FAILURES):
    lines, described = [], []

    def describe(step, what, figures):
        described.append((step, what))
        return "FILE holds the batch"

    return Failures(settings, describe, lambda step, text: lines.append(text), state), lines, described


def test_stop():
    failures, _, described = failures_of(StopSettings())
    failures.on_step(1, GOOD)
    with pytest.raises(
        UserError, match=r"step 2: loss is nan; FILE holds the batch\. The step was not applied\. Lower"
    ):
        failures.on_step(2, BAD)
    assert described == [(2, "loss is nan")]


def test_skip_bears_so_many_in_a_row():
    failures, lines, described = failures_of(SkipSettings(max_in_a_row=2))
    overflow = {**BAD, "loss": 1.0, "loss_scale": 8.0}
    for step, logs in enumerate([BAD, BAD, GOOD, BAD, overflow, BAD], start=1):
        failures.on_step(step, logs)
    assert lines == ["loss is nan; the step is left out; FILE holds the batch"] * 4
    assert failures.state["in_a_row"] == 2
    with pytest.raises(UserError, match="loss is nan, after 2 steps in a row that were left out; FILE"):
        failures.on_step(7, BAD)
    assert [step for step, _ in described] == [1, 2, 4, 6, 7]


def test_a_resumed_run_goes_on_counting():
    failures, _, _ = failures_of(SkipSettings(max_in_a_row=2), {"in_a_row": 2, "roll_backs": 0})
    with pytest.raises(UserError, match="after 2 steps in a row"):
        failures.on_step(7, BAD)


def test_roll_back_so_many_times():
    failures, lines, _ = failures_of(RollBackSettings(max_times=2), {"in_a_row": 0, "roll_backs": 1})
    with pytest.raises(RollBack) as caught:
        failures.on_step(9, BAD)
    assert caught.value.state == {"in_a_row": 0, "roll_backs": 2}
    assert "going back to the last checkpoint, with 0.5 times the learning rate (2 of 2)" in lines[0]
    failures, _, _ = failures_of(RollBackSettings(max_times=2), caught.value.state)
    with pytest.raises(UserError, match="loss is nan, after going back 2 times; FILE"):
        failures.on_step(9, BAD)
    assert NO_FAILURES == {"in_a_row": 0, "roll_backs": 0}
