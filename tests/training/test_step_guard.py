"""Which steps count: the loss scale by hand, spikes at their corners, and a skipped step that leaves every bit."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.training.optimizer_settings import (
    AdafactorSettings,
    AdamWSettings,
    LionSettings,
    MomentumSettings,
    MuonSettings,
)
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.step_guard import LossScale, StepGuard
from kerasllm.training.trainer import Trainer


class Scale(keras.Model):
    """y = a * x, with a statistic that every forward pass writes to, as a batch normalization does."""

    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="a", shape=(2, 2), initializer="ones")
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, x, training=False):
        if training:
            self.seen.assign(self.seen + tf.reduce_mean(x))
        return tf.reduce_sum(self.a) * x


def objective(model, batch, training):
    return model(batch, training=training), tf.ones_like(batch)


def guarded(guard, settings=None, **arguments):
    model = Scale()
    trainer = Trainer(model, objective, guard=guard, **arguments)
    trainer.compile(optimizer=build_optimizer(settings or AdamWSettings(), 0.1, model.trainable_variables))
    return trainer


def step(trainer, *values):
    return {name: float(value) for name, value in trainer.train_step([tf.constant(values)]).items()}


def test_the_loss_scale_by_hand():
    """Overflow halves and skips, two good steps in a row double, and an overflow begins the count anew."""
    scale = LossScale(initial=8.0, growth_steps=2)
    trainer = guarded(StepGuard(loss_scale=scale))
    shown, big = [], 3e38  # times 8 it is more than a float32 holds
    for value in (1.0, big, 1.0, 1.0, 1.0, big, 1.0, 1.0):
        logs = step(trainer, value)
        shown.append((logs["loss_scale"], logs["applied"]))
    assert shown == [(8, 1), (8, 0), (4, 1), (4, 1), (8, 1), (8, 0), (4, 1), (4, 1)]
    assert float(scale.scale) == 8.0
    assert int(scale.good_steps) == 0


def test_the_loss_scale_has_bounds():
    scale = LossScale(initial=LossScale.LEAST, growth_steps=1)
    scale.update(tf.constant(False))
    assert float(scale.scale) == LossScale.LEAST
    scale.scale.assign(LossScale.GREATEST)
    scale.update(tf.constant(True))
    assert float(scale.scale) == LossScale.GREATEST


def test_a_scaled_gradient_is_the_gradient():
    plain, scaled = guarded(StepGuard()), guarded(StepGuard(loss_scale=LossScale(initial=1024.0)), clip_norm=0.5)
    logs, others = step(plain, 1.0, 3.0), step(scaled, 1.0, 3.0)
    assert others["loss"] == logs["loss"] == 8.0
    assert others["gradient_norm"] == logs["gradient_norm"] == 4.0  # the mean of x, for each of four numbers


OPTIMIZERS = [AdamWSettings(), MomentumSettings(), LionSettings(), MuonSettings(), AdafactorSettings()]


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda settings: settings.name)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_a_skipped_step_leaves_every_bit(settings, compiled):
    """Weights, statistics of the forward pass, slots and average; `iterations` alone goes on."""
    guard, averaging = StepGuard(spike_factor=3.0, spike_window_steps=1), {"average_decay": lambda step: 0.9}
    trainer = guarded(guard, settings, **averaging, lookahead_every=2)
    take = tf.function(trainer.train_step, autograph=False) if compiled else trainer.train_step
    assert float(take([tf.constant([1.0, 2.0])])["applied"]) == 1

    def state():
        variables = [
            *trainer.model.variables,
            *trainer.optimizer.variables,
            *trainer.averages,
            *trainer.guard.variables,
        ]
        return [variable.numpy() for variable in variables if variable is not trainer.optimizer.iterations]

    before = state()
    for bad in ([np.nan, 1.0], [np.inf, 1.0], [100.0, 100.0]):
        assert float(take([tf.constant(bad, tf.float32)])["applied"]) == 0
        for ours, theirs in zip(state(), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert int(trainer.optimizer.iterations) == 4
    assert float(take([tf.constant([1.0, 2.0])])["applied"]) == 1
    assert any((ours != theirs).any() for ours, theirs in zip(state(), before, strict=True))


def judged(guard, losses):
    return [bool(guard.judge(tf.constant(loss), tf.constant(1.0))[0]) for loss in losses]


@pytest.mark.parametrize(
    ("losses", "applied"),
    [
        ([1.0, 3.0, 6.1], [True, True, False]),  # the mean is 2
        ([1.0, 3.0, 6.0], [True, True, True]),  # 3 times the mean is none yet
        ([1.0, 30.0, 5.0], [True, True, True]),  # before the window is full nothing is a spike
        ([1.0, 3.0, 9.0, 6.1], [True, True, False, False]),  # a spike does not raise the mean
        ([1.0, 3.0, 6.0, 12.1], [True, True, True, False]),  # from 2 the mean goes half way to 6
        ([-1.0, -3.0, 50.0], [True, True, True]),  # a negative mean says nothing
        ([1.0, np.nan, 3.0, 7.0], [True, False, True, False]),  # what is no number is not in the mean
    ],
    ids=["above", "equal", "window", "kept_out", "running", "negative", "nan"],
)
def test_spikes(losses, applied):
    assert judged(StepGuard(spike_factor=3.0, spike_window_steps=2), losses) == applied


def test_without_a_factor_only_what_is_not_finite_is_left_out():
    guard = StepGuard()
    assert judged(guard, [1.0, 1e30, np.inf, np.nan]) == [True, True, False, False]
    assert guard.variables == []


def test_what_a_guard_keeps_is_saved():
    trainer = guarded(StepGuard(spike_factor=3.0, loss_scale=LossScale()))
    names = [variable.name for variable in trainer.state_variables]
    assert names[-4:] == ["mean_loss", "steps_seen", "loss_scale", "good_steps"]


def test_float32_has_nothing_of_the_loss_scale_in_its_graph():
    def operations(guard):
        trainer = guarded(guard)
        graph = tf.function(trainer.train_step, autograph=False).get_concrete_function([tf.ones([2])]).graph
        return sorted(operation.type for operation in graph.get_operations())

    plain, scaled = operations(StepGuard()), operations(StepGuard(loss_scale=LossScale()))
    assert len(scaled) > len(plain)
    assert {"Mul", "AssignVariableOp"} <= {each for each in set(scaled) if scaled.count(each) > plain.count(each)}
    assert plain.count("IsFinite") == 2


# In a process of its own: the number of devices is fixed when TensorFlow starts.
TWO_REPLICAS = """
import json
import numpy as np
from kerasllm.environment import build_strategy, configure
configure()
import tensorflow as tf
from kerasllm.training.optimizer_settings import AdamWSettings
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.incidents import inspect_step
from kerasllm.training.step_guard import LossScale, StepGuard
from kerasllm.training.trainer import Trainer
import keras

class Model(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="a", shape=(2, 2), initializer="ones")
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", trainable=False, aggregation="mean")
        self.built = True
    def call(self, x, training=False):
        self.seen.assign(self.seen + tf.reduce_mean(x))
        return tf.reduce_sum(self.a) * x

strategy = build_strategy(2)
with strategy.scope():
    model = Model()
    guard = StepGuard(spike_factor=3.0, spike_window_steps=2, loss_scale=LossScale())
    trainer = Trainer(model, lambda m, b, training: (m(b, training=training), tf.ones_like(b)), clip_norm=1.0,
                      average_decay=lambda step: tf.constant(0.9), guard=guard)
    trainer.compile(optimizer=build_optimizer(AdamWSettings(), 0.1, model.trainable_variables))

# The second replica alone has what is wrong: in step 3 a NaN, in step 4 a spike.
parts = [[1.0], [2.0], [1.0], [3.0], [1.0], [np.nan], [1.0], [90.0], [1.0], [2.0]]
dataset = strategy.distribute_datasets_from_function(
    lambda context: tf.data.Dataset.from_generator(
        lambda: ((np.float32(part),) for part in parts), output_signature=(tf.TensorSpec([None], tf.float32),)))
variables = [*model.variables, *trainer.optimizer.variables[2:], *trainer.averages]

def state():
    return [[np.array(copy).tolist() for copy in strategy.experimental_local_results(v.value)] for v in variables]

states, collected = [], []
def on_end(batch, logs):
    states.append(state())
    collected.append(dict(logs))
callback = keras.callbacks.LambdaCallback(on_train_batch_end=on_end)
trainer.fit(dataset, steps_per_epoch=5, shuffle=False, verbose=0, callbacks=[callback])
before = state()
found = inspect_step(trainer, strategy, [(np.float32([1.0]),), (np.float32([np.nan]),)])
print(json.dumps({"states": states, "logs": collected, "found": found, "unchanged": before == state()}))
"""


def test_two_replicas_skip_together():
    command = [sys.executable, "-c", TWO_REPLICAS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    states = found["states"]
    assert [logs["applied"] for logs in found["logs"]] == [1, 1, 0, 0, 1]
    assert states[1] == states[2] == states[3]
    assert states[0] != states[1] != states[4]
    assert all(copies[0] == copy for state in states for copies in state for copy in copies)
    assert found["unchanged"], "an inspection changes nothing"
    assert found["found"]["first_layer"]["layer"] == "model"
    assert found["found"]["weights"] == []
