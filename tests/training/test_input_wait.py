"""How long the steps wait for their batches: as long as the consumer stands still, and no longer."""

import time

import keras
import pytest
import tensorflow as tf

from kerasllm.training.input_wait import InputWait
from kerasllm.training.trainer import Trainer


class Slow(keras.Model):
    """y = a * x, after a moment of work."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.built = True

    def call(self, x, training=False):
        def work(x):
            time.sleep(self.seconds)
            return x

        x = tf.ensure_shape(tf.py_function(work, [x], tf.float32), [None])
        return self.a * x


def shares(making, stepping, steps=8):
    """The share of each step but the first two that was waiting, of batches that take `making` seconds each."""

    def elements():
        while True:
            time.sleep(making)
            yield ([1.0],)

    model = Slow(stepping)
    trainer = Trainer(model, lambda model, batch, training: (model(batch), tf.ones_like(batch)))
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    signature = (tf.TensorSpec([None], tf.float32),)
    dataset = tf.data.Dataset.from_generator(elements, output_signature=signature).prefetch(4)
    wait, found, began = InputWait(), [], []

    def on_end(batch, logs):
        found.append(wait.add(float(trainer.input_wait_seconds), time.perf_counter() - began[-1]))

    callback = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: began.append(time.perf_counter()), on_train_batch_end=on_end
    )
    trainer.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[callback])
    return found[2:]


def test_a_slow_stream_is_waited_for_and_one_made_ahead_is_not():
    """The second stream is slow too, but made while the step before works."""
    slow, ahead = shares(making=0.1, stepping=0.0), shares(making=0.05, stepping=0.3)
    assert sorted(slow)[len(slow) // 2] > 0.6
    assert sorted(ahead)[len(ahead) // 2] < 0.2
    assert all(0 <= share <= 1 for share in slow + ahead)


@pytest.mark.parametrize(
    ("waits", "lines"),
    [
        (
            [0.3] * 4,
            ["waiting for data: 30% of the last 4 steps' time; batches are made more slowly than they are used"],
        ),
        ([0.2] * 4, []),
        ([0.1] * 4 + [0.3] * 3, []),  # the second window is not full
        ([0.9, 0.0, 0.0, 0.0] * 2, ["waiting for data: 22%"]),  # said once
    ],
    ids=["above", "equal", "window", "once"],
)
def test_a_large_share_is_said_once(waits, lines):
    said = []
    wait = InputWait(window_steps=4, limit=0.2, report=said.append)
    assert [wait.add(each, 1.0) for each in waits] == waits
    assert len(said) == len(lines)
    assert all(ours.startswith(theirs) for ours, theirs in zip(said, lines, strict=True))
