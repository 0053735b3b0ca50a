"""Layer normalization by its formula, and the gate that blends it in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.normalization import LayerNormalization, gated_normalization

X = np.random.default_rng(0).normal(2.0, 3.0, (4, 5, 8)).astype("float32")


def built(patterns=(), name="normalization"):
    with gated_normalization(patterns):
        layer = LayerNormalization(name=name)
        layer.build(X.shape)
    layer.scale.assign(np.linspace(0.5, 2.0, 8))
    layer.offset.assign(np.linspace(-1.0, 1.0, 8))
    return layer


def value_and_gradients(layer):
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y * tf.sin(y))
    return y.numpy(), [g.numpy() for g in tape.gradient(total, [x, layer.scale.value, layer.offset.value])]


def by_formula():
    centred = X.astype("float64") - X.mean(-1, keepdims=True, dtype="float64")
    standard = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return standard * np.linspace(0.5, 2.0, 8) + np.linspace(-1.0, 1.0, 8)


def test_the_formula():
    np.testing.assert_allclose(built()(X), by_formula(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [0.25, 0.7])
def test_a_gate_blends(gate):
    layer = built(["norm"])
    layer.normalization_gate.assign(gate)
    np.testing.assert_allclose(layer(X), (1 - gate) * X + gate * by_formula(), rtol=1e-5, atol=1e-5)


def test_an_open_gate_is_the_plain_layer_to_the_bit_and_a_closed_one_the_identity():
    layer, (plain, plain_gradients) = built(["norm"]), value_and_gradients(built())
    layer.normalization_gate.assign(1.0)
    value, gradients = value_and_gradients(layer)
    assert value.tobytes() == plain.tobytes()
    for ours, theirs in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    layer.normalization_gate.assign(0.0)
    value, (x_gradient, *others) = value_and_gradients(layer)
    np.testing.assert_array_equal(value, X)
    np.testing.assert_allclose(x_gradient, np.sin(X) + X * np.cos(X), rtol=1e-5, atol=1e-5)
    assert not any(gradient.any() for gradient in others)


def test_only_the_layers_that_are_named_have_a_gate_and_the_others_pay_nothing():
    def operations(layer):
        graph = tf.function(layer.call, autograph=False).get_concrete_function(tf.TensorSpec([None, 8])).graph
        return len(graph.get_operations())

    class Block(keras.layers.Layer):
        def build(self, shape):
            self.first, self.last = LayerNormalization(name="first"), LayerNormalization(name="last")
            self.first.build(shape)
            self.last.build(shape)

    with gated_normalization(["block_1/first", "nothing"]):
        blocks = [Block(name=f"block_{index}") for index in range(2)]
        for block in blocks:
            block.build((None, 8))
    gated = [[layer.normalization_gate is not None for layer in (block.first, block.last)] for block in blocks]
    assert gated == [[False, False], [True, False]]
    assert blocks[1].first.normalization_gate.path == "block_1/first/gate"
    assert len(blocks[1].first.trainable_weights) == 2
    plain = built()
    assert [weight.name for weight in plain.weights] == ["scale", "offset"]
    assert operations(blocks[1].last) == operations(plain) < operations(blocks[1].first)
