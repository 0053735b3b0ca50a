"""The network over rows of numbers, against its formula."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.models.multilayer_perceptron import MultilayerPerceptron

PICTURES = np.float32([[[[0.0], [0.5], [1.0]]], [[[1.0], [0.0], [0.25]]]])  # [2, 1, 3, 1]
ROWS = PICTURES.reshape(2, 3)


def test_without_a_hidden_layer_it_is_softmax_regression():
    model = MultilayerPerceptron(1, 3, 1, 2, num_layers=0)
    kernel, bias = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([0.5, -0.5])
    assert [tuple(variable.shape) for variable in model.trainable_variables] == [(3, 2), (2,)]
    model.set_weights([kernel, bias])
    np.testing.assert_allclose(model(PICTURES), ROWS @ kernel + bias, rtol=1e-6)


def test_hidden_layers_follow_each_other():
    model = MultilayerPerceptron(1, 3, 1, 2, num_layers=2, hidden_dim=4, activation="tanh")
    weights = [np.random.default_rng(0).normal(size=weight.shape).astype("float32") for weight in model.get_weights()]
    model.set_weights(weights)
    values = ROWS
    for kernel, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
        values = np.tanh(values @ kernel + bias)
    np.testing.assert_allclose(model(PICTURES), values @ weights[4] + weights[5], rtol=1e-5)


def test_softmax_regression_starts_with_all_classes_as_likely():
    np.testing.assert_array_equal(MultilayerPerceptron(1, 3, 1, 4, num_layers=0)(PICTURES), np.zeros([2, 4]))
    assert np.any(MultilayerPerceptron(1, 3, 1, 4, num_layers=1)(PICTURES))


def test_dropout_is_for_training_only():
    model = MultilayerPerceptron(1, 3, 1, 2, num_layers=1, hidden_dim=64, dropout=0.5)
    model.output_layer.kernel.assign(tf.ones([64, 2]))
    np.testing.assert_array_equal(model(PICTURES), model(PICTURES))
    first, second = model(PICTURES, training=True), model(PICTURES, training=True)
    assert not np.allclose(first, second)
    assert float(first[0, 0]) != pytest.approx(float(model(PICTURES)[0, 0]))
