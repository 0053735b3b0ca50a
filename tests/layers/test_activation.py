"""Both forms of GELU and their gradients against the formulas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.activation import activation

X = np.linspace(-6, 6, 101).astype("float32")
FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_approximate": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", ["gelu", "gelu_approximate"])
def test_values_and_gradients_follow_the_formula(name):
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = 3.0 * activation(name)(x)
    formula, step = FORMULAS[name], 1e-5
    np.testing.assert_allclose(y, [3 * formula(value) for value in X.tolist()], atol=2e-6)
    slopes = [3 * (formula(value + step) - formula(value - step)) / (2 * step) for value in X.tolist()]
    np.testing.assert_allclose(tape.gradient(y, x), slopes, atol=1e-5)


def test_other_names_are_those_of_keras():
    assert activation("relu") is keras.activations.relu
