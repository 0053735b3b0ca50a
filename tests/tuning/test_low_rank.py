"""LoRA by hand on a 2 x 2 kernel, for the parts of a fused projection, with dropout, and in half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.environment import compute_precision
from kerasllm.layers.projection import Projection
from kerasllm.tuning.low_rank import LowRank


def adapted(units, inputs, parts=(), places=(0,), rank=2, alpha=6.0, dropout=0.0):
    """A projection and its addition, with values drawn for both."""
    keras.utils.set_random_seed(1)
    projection = Projection(units, parts=parts, name="projection")
    projection.build((None, inputs))
    addition = LowRank(projection, places, rank, alpha, dropout)
    for up in addition.up:
        up.assign(np.random.default_rng(0).normal(size=up.shape))
    projection.adapter = addition.__call__
    return projection, addition


def test_gradients_by_hand():
    projection, addition = adapted(2, 2, rank=1, alpha=3.0)
    projection.kernel.assign([[1.0, 2.0], [3.0, 4.0]])
    addition.up[0].assign([[1.0], [-2.0]])
    addition.down[0].assign([[0.5, 1.0]])
    x = tf.constant([[2.0, -1.0], [0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = projection(x)
        loss = tf.reduce_sum(y * [[1.0, 10.0], [100.0, 1000.0]])
    # W + 3 B A = [[2.5, 5], [0, -2]]
    np.testing.assert_allclose(y, [[0.0, 2.0], [5.0, -2.0]])
    x_gradient, up, down, kernel = tape.gradient(
        loss, [x, addition.up[0].value, addition.down[0].value, projection.kernel.value]
    )
    np.testing.assert_allclose(x_gradient, [[2.5, -15.0], [250.0, -1500.0]])
    # x A^T = [0, 1]; 3 g^T of it
    np.testing.assert_allclose(up, [[300.0], [3000.0]])
    # g B = [-19, -1900]; 3 times it, transposed, times x
    np.testing.assert_allclose(down, [[-114.0, 57.0 - 5700.0]])
    assert kernel is None, "the kernel is frozen"


def test_each_part_of_a_fused_projection_is_adapted_by_itself():
    projection, addition = adapted(12, 5, parts=("query", "key", "value"), places=(0, 2), rank=2, alpha=6.0)
    assert [v.name for v in addition.trainable_variables] == ["query_down", "query_up", "value_down", "value_up"]
    kernel, x = projection.kernel.numpy(), np.random.default_rng(1).normal(size=(3, 7, 5)).astype("float32")
    expected = [np.einsum("bti,ui->btu", x, kernel[start : start + 4]) for start in (0, 4, 8)]
    for place, up, down in zip((0, 2), addition.up, addition.down, strict=True):
        expected[place] = expected[place] + 3.0 * (x @ down.numpy().T) @ up.numpy().T
    np.testing.assert_allclose(projection(x), np.concatenate(expected, axis=-1), atol=1e-5)


def test_its_gradients_are_those_of_the_plain_formula():
    projection, addition = adapted(12, 5, parts=("query", "key", "value"), places=(0, 1), rank=3)
    x = tf.constant(np.random.default_rng(1).normal(size=(7, 5)), tf.float32)
    variables = [v.value for v in addition.trainable_variables]

    def plain():
        rows = tf.split(tf.convert_to_tensor(projection.kernel), 3)
        for place, up, down in zip((0, 1), addition.up, addition.down, strict=True):
            rows[place] += 2.0 * tf.matmul(tf.convert_to_tensor(up), tf.convert_to_tensor(down))
        return tf.matmul(x, tf.concat(rows, axis=0), transpose_b=True)

    found = []
    for product in (lambda: projection(x), plain):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.sin(product()))
        found.append(tape.gradient(loss, [x, *variables]))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_the_way_into_the_addition_alone():
    projection, addition = adapted(4, 6, dropout=0.5)
    x = tf.constant(np.random.default_rng(1).normal(size=(9, 6)), tf.float32)
    state = addition.dropout.seed_generator.state
    before = state.numpy()
    y = projection.adapter(x, training=True)
    state.assign(before)
    inside = addition.dropout(x, training=True)
    up, down = addition.factors()
    expected = tf.matmul(x, tf.convert_to_tensor(projection.kernel), transpose_b=True)
    expected += tf.matmul(tf.matmul(inside, down, transpose_b=True), up, transpose_b=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert np.abs(y - projection.adapter(x, training=False)).max() > 0.1
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(projection.adapter(x, training=True))
    gradients = tape.gradient(loss, [v.value for v in addition.trainable_variables])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_in_half_precision_the_sum_keeps_the_digits_of_float32(dropout):
    """An addition below a bfloat16's last digit of 1 still counts where it crosses a half."""
    with compute_precision("bfloat16"):
        projection, addition = adapted(1, 1, rank=1, alpha=1.0, dropout=dropout)
    projection.kernel.assign([[1.0 + 0.0038]])  # less than half of the way from 1 to the next one, 1.0078
    addition.up[0].assign([[0.0002]])
    addition.down[0].assign([[1.0]])
    y = projection(tf.ones([1, 1], tf.bfloat16))
    assert y.dtype == tf.bfloat16
    assert float(y[0, 0]) == 1.0078125
    with tf.GradientTape() as tape:
        loss = projection.adapter(tf.ones([1, 1], tf.bfloat16), training=True)
    assert tape.gradient(loss, addition.up[0].value).dtype == tf.float32
