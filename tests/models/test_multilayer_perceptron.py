"""The network over rows of numbers, against its formula."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.models.multilayer_perceptron import MultilayerPerceptron

ROWS = np.int32([[0, 4, 8], [8, 0, 2]])


def test_without_a_hidden_layer_it_is_softmax_regression():
    model = MultilayerPerceptron(num_inputs=3, num_classes=2, greatest_input=8.0, num_layers=0)
    kernel, bias = np.float32([[1, 2], [3, 4], [5, 6]]), np.float32([0.5, -0.5])
    assert [tuple(variable.shape) for variable in model.trainable_variables] == [(3, 2), (2,)]
    model.set_weights([kernel, bias])
    np.testing.assert_allclose(model(ROWS), ROWS / 8.0 @ kernel + bias, rtol=1e-6)


def test_hidden_layers_follow_each_other():
    model = MultilayerPerceptron(3, 2, 8.0, num_layers=2, hidden_dim=4, activation="tanh")
    weights = [np.random.default_rng(0).normal(size=weight.shape).astype("float32") for weight in model.get_weights()]
    model.set_weights(weights)
    values = ROWS / 8.0
    for kernel, bias in zip(weights[:4:2], weights[1:4:2], strict=True):
        values = np.tanh(values @ kernel + bias)
    np.testing.assert_allclose(model(ROWS), values @ weights[4] + weights[5], rtol=1e-5)


def test_softmax_regression_starts_with_all_classes_as_likely():
    np.testing.assert_array_equal(MultilayerPerceptron(3, 4, 8.0, num_layers=0)(ROWS), np.zeros([2, 4]))
    assert np.any(MultilayerPerceptron(3, 4, 8.0, num_layers=1)(ROWS))


def test_dropout_is_for_training_only():
    model = MultilayerPerceptron(3, 2, 8.0, num_layers=1, hidden_dim=64, dropout=0.5)
    model.output_layer.kernel.assign(tf.ones([64, 2]))
    np.testing.assert_array_equal(model(ROWS), model(ROWS))
    first, second = model(ROWS, training=True), model(ROWS, training=True)
    assert not np.allclose(first, second)
    assert float(first[0, 0]) != pytest.approx(float(model(ROWS)[0, 0]))
