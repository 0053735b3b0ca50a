"""Schedules at their corners, and durations in steps."""

import math
import typing

import keras
import pytest

from kerasllm.errors import UserError
from kerasllm.training import schedule_settings
from kerasllm.training.schedule_settings import InverseSquareRootSettings, ScheduleSettings
from kerasllm.training.schedules import Schedule, build_schedule
from kerasllm.training.settings import StepPlan, TrainingSettings

BY_NAME = {member().name: member for member in typing.get_args(typing.get_args(ScheduleSettings)[0])}
PEAK = 2.0

each_schedule = pytest.mark.parametrize("name", BY_NAME)


def rates(name, steps, warmup_steps=10, total_steps=110, **arguments):
    """The rates at some steps of a run whose peak is 2; step 109 is its last, 110 would be the one after."""
    schedule = build_schedule(BY_NAME[name](warmup_steps=warmup_steps, **arguments), PEAK, total_steps)
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - {"cosine", "one_cycle"}))
def test_the_warm_up_is_a_straight_line_to_the_peak(name):
    """Step 0 is the first and takes a tenth of the peak, step 9 the tenth and takes all of it."""
    assert rates(name, [0, 4, 9]) == pytest.approx([0.2, 1.0, 2.0])
    assert rates(name, [0], warmup_steps=0) == pytest.approx([2.0])


def test_constant():
    assert rates("constant", [9, 10, 60, 109]) == pytest.approx([2.0] * 4)


def test_step():
    """A step down every 40; by default after each third of the 100 steps, of which the first two have 34."""
    assert rates("step", [10, 49, 50, 89, 90, 109], every_steps=40, factor=0.5) == pytest.approx([2, 2, 1, 1, 0.5, 0.5])
    assert rates("step", [10, 43, 44, 77, 78, 109]) == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_exponential():
    """Half-way to a hundredth it is a tenth."""
    assert rates("exponential", [10, 60, 110], to=0.01) == pytest.approx([2.0, 0.2, 0.02])
    assert rates("exponential", [109], to=0.01) == pytest.approx([2.0 * 0.01**0.99])


def test_linear():
    assert rates("linear", [10, 60, 109, 110]) == pytest.approx([2.0, 1.0, 0.02, 0.0], abs=1e-6)
    assert rates("linear", [10, 60, 110], to=0.5) == pytest.approx([2.0, 1.5, 1.0])


def test_cosine():
    """Keras's own: its warm-up begins with 0."""
    assert rates("cosine", [0, 5, 10, 60, 110]) == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0], abs=1e-6)
    assert rates("cosine", [0, 55, 110], warmup_steps=0) == pytest.approx([2.0, 1.0, 0.0], abs=1e-6)
    assert rates("cosine", [109]) == pytest.approx([1 + math.cos(math.pi * 0.99)], rel=1e-3)
    assert rates("cosine", [10, 60, 110], to=0.1) == pytest.approx([2.0, 1.1, 0.2])


def test_inverse_square_root():
    """The peak is the tenth step, a half of it four times as late."""
    assert rates("inverse_square_root", [9, 10, 39, 89]) == pytest.approx([2.0, 2 * math.sqrt(10 / 11), 1.0, 2 / 3])
    assert rates("inverse_square_root", [0, 3, 99], warmup_steps=0) == pytest.approx([2.0, 1.0, 0.2])


def test_one_cycle():
    """Up for 30 of the 100 steps, down for 70."""
    arguments = {"up_share": 0.3, "start_divisor": 4.0, "end_divisor": 20.0}
    found = rates("one_cycle", [0, 9, 10, 25, 40, 75, 110], **arguments)
    assert found == pytest.approx([0.05, 0.5, 0.5, 1.25, 2.0, (2.0 + 0.1) / 2, 0.1])
    assert rates("one_cycle", [109], **arguments) == pytest.approx(
        [0.1 + 1.9 * (1 - math.cos(math.pi / 70)) / 2], rel=1e-4
    )
    assert rates("one_cycle", [0, 30, 100], warmup_steps=0, total_steps=100) == pytest.approx([0.08, 2.0, 0.0002])


def test_warmup_stable_decay():
    """The last fifth of 110 steps are 22: from step 88 on."""
    assert rates("warmup_stable_decay", [10, 60, 88], decay="linear") == pytest.approx([2.0] * 3)
    assert rates("warmup_stable_decay", [99, 109, 110], decay="linear") == pytest.approx([1.0, 2 / 22, 0.0], abs=1e-6)
    found = rates("warmup_stable_decay", [88, 99, 110], to=0.1, decay="one_minus_square_root")
    assert found == pytest.approx([2.0, 2 * (1 - 0.9 * math.sqrt(0.5)), 0.2])


@each_schedule
def test_the_rate_is_never_above_the_peak_and_is_the_same_in_a_graph(name):
    schedule = build_schedule(BY_NAME[name](warmup_steps=10), PEAK, 110)
    found = [float(schedule(step)) for step in range(110)]
    assert max(found) == pytest.approx(PEAK)
    assert min(found[1:]) > 0
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.iterations.assign(70)
    assert float(optimizer.learning_rate) == pytest.approx(found[70])


@each_schedule
def test_from_its_configuration_it_is_the_same(name):
    schedule = build_schedule(BY_NAME[name](warmup_steps=10), PEAK, 110)
    again = type(schedule).from_config(schedule.get_config())
    assert again is not schedule
    assert [float(again(step)) for step in (0, 50, 109)] == [float(schedule(step)) for step in (0, 50, 109)]
    assert isinstance(schedule, keras.optimizers.schedules.CosineDecay if name == "cosine" else Schedule)


@each_schedule
def test_a_warm_up_longer_than_training(name):
    with pytest.raises(UserError, match=r"^warmup_steps: 110 is not below the 110 steps of training; shorten it"):
        rates(name, [0], warmup_steps=110)


def test_a_schedule_longer_than_training():
    with pytest.raises(UserError, match=r"^every_steps: 100 is not below the 100 after the warm-up; shorten it"):
        rates("step", [0], every_steps=100)
    with pytest.raises(UserError, match=r"^decay_share: its 106 steps exceed the 100 after the warm-up; lower it"):
        rates("warmup_stable_decay", [0], decay_share=0.96)
    with pytest.raises(ValueError, match="warmup_steps 50 is not below train_steps 50"):
        TrainingSettings(train_steps=50, schedule=InverseSquareRootSettings(warmup_steps=50))


def test_the_table_in_the_docstring_names_every_argument():
    table = {
        line.split()[0]: line.replace(",", "").split()[1:] for line in schedule_settings.__doc__.splitlines()[2:11]
    }
    for name, member in BY_NAME.items():
        assert table[name] == [key for key in member.model_fields if key not in ("name", "warmup_steps")]


def test_a_step_is_found_in_its_epoch():
    plan = StepPlan(epoch_starts=(0, 4, 9, 13), evaluation_steps=frozenset([13]), total_steps=13)
    assert [plan.locate(step) for step in (0, 3, 4, 8, 9, 13)] == [(0, 0), (0, 3), (1, 0), (1, 4), (2, 0), (2, 4)]
