"""Dropout: the rate, the scale, repetition from the seed, and nothing at all outside training."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.dropout import Dropout


def test_rate_and_scale():
    dropped = Dropout(0.3, seed=1)(tf.ones([7, 1001, 13]), training=True).numpy()
    assert abs((dropped == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-4)


def test_masks_repeat_from_the_seed_and_differ_from_call_to_call():
    x = tf.ones([50, 50])
    first, second = Dropout(0.5, seed=3), Dropout(0.5, seed=3)
    masks = [first(x, training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(masks, [second(x, training=True).numpy() for _ in range(2)])
    assert (masks[0] != masks[1]).mean() > 0.4


TWO_REPLICAS = """
import numpy as np
from kerasllm.environment import build_strategy, configure
configure()
import tensorflow as tf
strategy = build_strategy(2)
from kerasllm.layers.dropout import Dropout
with strategy.scope():
    layer = Dropout(0.5, seed=3)
masks = strategy.run(tf.function(lambda: layer(tf.ones([100]), training=True))).values
print(int(sum(a != b for a, b in zip(*(mask.numpy() for mask in masks)))))
"""


def test_replicas_draw_different_masks():
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, check=True)
    assert 20 < int(done.stdout) < 80


def test_gradient_flows_where_the_value_was_kept():
    x = tf.ones([100])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Dropout(0.5, seed=1)(x, training=True)
    np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_identity_outside_training():
    x = tf.random.normal([3, 4])
    assert Dropout(0.5)(x, training=False) is x


def test_impossible_rate():
    with pytest.raises(ValueError, match="rate must be in"):
        Dropout(1.0)
