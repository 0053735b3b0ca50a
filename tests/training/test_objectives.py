"""Cross-entropy with smoothed labels, by hand and against TensorFlow's own with a full table of labels."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.training.objectives import cross_entropy


def test_label_smoothing_by_hand():
    """p = (1/2, 1/4, 1/4), label 0, epsilon 0.3: q = (0.8, 0.1, 0.1)."""
    logits = tf.math.log(tf.constant([[[0.5, 0.25, 0.25]]]))
    expected = 0.8 * np.log(2) + 0.2 * np.log(4)
    np.testing.assert_allclose(cross_entropy(logits, tf.constant([[0]]), 0.3), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_those_of_a_full_table_of_labels(label_smoothing):
    rng = np.random.default_rng(0)
    logits = tf.Variable(rng.normal(size=(2, 3, 7)), dtype=tf.float32)
    labels = tf.constant(rng.integers(0, 7, (2, 3)))
    weights = tf.constant(rng.random((2, 3)), tf.float32)
    table = tf.one_hot(labels, 7) * (1 - label_smoothing) + label_smoothing / 7
    with tf.GradientTape(persistent=True) as tape:
        ours = cross_entropy(logits, labels, label_smoothing)
        theirs = tf.nn.softmax_cross_entropy_with_logits(table, logits)
        our_sum, their_sum = tf.reduce_sum(ours * weights), tf.reduce_sum(theirs * weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(our_sum, logits), tape.gradient(their_sum, logits), atol=1e-6)
