"""Positions against their formula; the embedding's scale and its shared table."""

import math
import threading

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.embedding import PositionEmbedding, TokenEmbedding
from kerasllm.layers.normalization import LayerNormalization
from kerasllm.layers.projection import Projection


def test_sinusoidal_positions():
    vectors = PositionEmbedding(50, 6)(tf.constant([0, 7])).numpy()
    np.testing.assert_allclose(vectors[0], [0, 0, 0, 1, 1, 1], atol=1e-7)
    angles = [7 / 10000 ** (i / 3) for i in range(3)]
    np.testing.assert_allclose(vectors[1], [*map(math.sin, angles), *map(math.cos, angles)], atol=1e-6)


def test_learned_positions_are_trained():
    layer = PositionEmbedding(5, 4, kind="learned")
    assert [variable.shape for variable in layer.trainable_variables] == [(5, 4)]
    np.testing.assert_array_equal(layer(tf.constant([2, 2])), np.stack([layer.table[2]] * 2))


def test_embedding_is_scaled_and_its_table_makes_the_logits():
    layer = TokenEmbedding(vocabulary_size=5, hidden_dim=4)
    table = layer.table.numpy()
    np.testing.assert_allclose(layer(tf.constant([[3]]))[0, 0], table[3] * 2.0, rtol=1e-6)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    np.testing.assert_allclose(layer.logits(tf.constant(x)), x @ table.T, atol=1e-6)


def test_an_embedding_is_perturbed_while_it_is_asked_for_and_in_this_thread_alone():
    """Each replica traces in a thread of its own, and they share the layer."""
    layer, ids = TokenEmbedding(vocabulary_size=5, hidden_dim=2), tf.constant([[3, 0]])
    clean, elsewhere, masks = layer(ids).numpy(), [], []

    def perturb(vectors, is_token):
        masks.append(is_token.numpy().tolist())
        return vectors + 1.0

    with layer.perturbed(perturb), layer.perturbed(lambda vectors, is_token: vectors * 3.0):
        np.testing.assert_allclose(layer(ids), (clean + 1.0) * 3.0, rtol=1e-6)
        thread = threading.Thread(target=lambda: elsewhere.append(layer(ids).numpy()))
        thread.start()
        thread.join()
    np.testing.assert_array_equal(elsewhere, [clean])
    assert masks == [[[True, False]]]
    with pytest.raises(ZeroDivisionError), layer.perturbed(lambda vectors, is_token: 1 / 0):
        layer(ids)
    np.testing.assert_array_equal(layer(ids), clean)


def test_layer_normalization_equals_its_formula():
    layer = LayerNormalization()
    layer.build((None, 4))
    layer.scale.assign([1.0, 2.0, 3.0, 4.0])
    layer.offset.assign([0.0, 0.0, 1.0, 1.0])
    x = np.random.default_rng(0).normal(5.0, 3.0, size=(3, 4))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer(tf.constant(x, tf.float32)), expected * [1, 2, 3, 4] + [0, 0, 1, 1], atol=1e-4)


def test_projection_keeps_the_leading_axes():
    layer = Projection(3)
    layer.build((None, None, 4))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    expected = x @ layer.kernel.numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(layer(tf.constant(x)), expected, atol=1e-6)
