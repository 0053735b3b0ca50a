"""Examples without a label count by what the model takes them for, where it is sure of it."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.training.objectives import cross_entropy
from kerasllm.training.pseudo_labels import PseudoLabels

LOGITS = np.float32([[4, 0, 0], [0.2, 0.1, 0], [0, 5, 0], [0, 0, 1]])
BATCH = {"labels": tf.constant([[2], [0], [0], [3]])}
"""The second has no label, and nobody is sure of it; the third has none, and is surely the second class."""


class Task:
    def forward(self, model, batch, training):
        self.passes.append(training)
        return tf.constant(LOGITS)[:, None] + model

    def loss(self, logits, batch, label_smoothing):
        labels = batch["labels"]
        weights = tf.cast(labels > 0, tf.float32)
        return cross_entropy(logits, tf.maximum(labels - 1, 0), label_smoothing), weights

    def __init__(self):
        self.passes = []


def plain(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_sure_ones_have_a_label_and_the_others_no_weight(weight):
    losses, weights = PseudoLabels(Task(), threshold=0.9, weight=weight)(tf.zeros([]), BATCH, training=True)
    np.testing.assert_array_equal(weights, [[1], [0], [weight], [1]])
    expected = [plain(LOGITS[0], 1), None, plain(LOGITS[2], 1), plain(LOGITS[3], 2)]
    for row in (0, 2, 3):
        np.testing.assert_allclose(losses[row, 0], expected[row], rtol=1e-5)


def test_labels_are_those_of_answers_and_get_no_gradient():
    task, shift = Task(), tf.Variable(tf.zeros([4, 1, 3]))
    with tf.GradientTape() as tape:
        losses, weights = PseudoLabels(task, threshold=0.9)(shift, BATCH, training=True)
        total = tf.reduce_sum(losses * weights)
    assert sorted(task.passes) == [False, True]
    probabilities = tf.nn.softmax(LOGITS).numpy()
    expected = probabilities - np.eye(3)[[1, 0, 1, 2]]
    expected[1] = 0
    np.testing.assert_allclose(tape.gradient(total, shift)[:, 0], expected, atol=1e-6)


def test_an_evaluation_counts_what_has_a_label():
    _, weights = PseudoLabels(Task(), threshold=0.1)(tf.zeros([]), BATCH, training=False)
    np.testing.assert_array_equal(weights, [[1], [0], [0], [1]])
