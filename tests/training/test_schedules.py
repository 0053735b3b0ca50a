"""Schedules at their corners, and durations in steps."""

import pytest

from kerasllm.training.schedules import build_schedule
from kerasllm.training.settings import ScheduleSettings, StepPlan, TrainingSettings


def rates(name, steps, warmup_steps=10, total_steps=110):
    schedule = build_schedule(ScheduleSettings(name=name, warmup_steps=warmup_steps), 2.0, total_steps)
    return [float(schedule(step)) for step in steps]


def test_inverse_square_root():
    """Step 0 is the first: a tenth of the peak. The peak is the tenth step, a half of it four times as late."""
    assert rates("inverse_square_root", [0, 4, 9, 39]) == pytest.approx([0.2, 1.0, 2.0, 1.0])


def test_cosine():
    assert rates("cosine", [0, 5, 10, 60, 110]) == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0], abs=1e-6)
    assert rates("cosine", [0, 55, 110], warmup_steps=0) == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)


def test_constant():
    assert rates("constant", [0, 4, 9, 100]) == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert rates("constant", [0, 100], warmup_steps=0) == pytest.approx([2.0, 2.0])


def test_a_warm_up_longer_than_training():
    with pytest.raises(ValueError, match="warmup_steps 200 is not below the 110 steps"):
        rates("cosine", [0], warmup_steps=200)
    with pytest.raises(ValueError, match="warmup_steps 50 is not below train_steps 50"):
        TrainingSettings(train_steps=50, schedule=ScheduleSettings(warmup_steps=50))


def test_a_step_is_found_in_its_epoch():
    plan = StepPlan(epoch_starts=(0, 4, 9, 13), evaluation_steps=frozenset([13]), total_steps=13)
    assert [plan.locate(step) for step in (0, 3, 4, 8, 9, 13)] == [(0, 0), (0, 3), (1, 0), (1, 4), (2, 0), (2, 4)]
