"""A network as its recipe lists it."""

import numpy as np
import tensorflow as tf

from kerasllm.layers.convolution import fold_normalizations
from kerasllm.models.conv_net import ConvNet, Pool
from kerasllm.models.settings import (
    ConvNetSettings,
    ConvolutionLayerSettings,
    DenseLayerSettings,
    DropoutLayerSettings,
    PoolLayerSettings,
)

PICTURES = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("float32")


def test_layers_follow_each_other():
    layers = [
        ConvolutionLayerSettings(filters=3, kernel_size=1, normalization="none"),
        PoolLayerSettings(name="pool"),
        DenseLayerSettings(name="dense", units=5),
    ]
    model = ConvNet(4, 4, 1, 2, layers)
    kernel, bias, dense, dense_bias, head, head_bias = model.get_weights()
    seen = np.maximum(PICTURES * kernel[0, 0] + bias, 0)  # [2, 4, 4, 3]
    seen = seen.reshape(2, 2, 2, 2, 2, 3).max(axis=(2, 4)).mean(axis=(1, 2))
    seen = np.maximum(seen @ dense + dense_bias, 0)
    np.testing.assert_allclose(model(PICTURES), seen @ head + head_bias, atol=1e-5)


def test_what_is_pooled_is_normalized_afterwards():
    """By the statistics of what is left, with another activation than the default."""
    layer = ConvolutionLayerSettings(filters=16, kernel_size=1, pool=2, activation="silu")
    model = ConvNet(4, 4, 1, 2, [layer])
    kernel = model.get_weights()[0]
    seen = (PICTURES * kernel[0, 0]).reshape(2, 2, 2, 2, 2, 16).max(axis=(2, 4))  # [2, 2, 2, 16]
    normal = (seen - seen.mean(axis=(0, 1, 2))) / np.sqrt(seen.var(axis=(0, 1, 2)) + 1e-5)
    expected = normal / (1 + np.exp(-normal))
    np.testing.assert_allclose(model.features(PICTURES, training=True), expected, atol=1e-4)
    before = model(PICTURES).numpy()
    fold_normalizations(model)
    np.testing.assert_array_equal(model(PICTURES), before)


def test_what_is_left_over_at_the_edge_is_in_no_square_unless_there_is_no_other():
    rows = np.arange(25.0).reshape(1, 5, 5, 1)
    for size, expected in ((2, [[6, 8], [16, 18]]), (3, [[12]]), (5, [[24]]), (6, [[24]])):
        layer = Pool(size)
        np.testing.assert_array_equal(layer(rows)[0, :, :, 0], expected)
        assert layer.compute_output_shape(rows.shape) == layer(rows).shape
    np.testing.assert_array_equal(Pool(2)(rows[:, :1])[0, :, :, 0], [[1, 3]])


def test_logits_are_scaled():
    model = ConvNet(4, 4, 1, 2, ConvNetSettings().layers, logit_scale=0.25)
    np.testing.assert_allclose(model(PICTURES), 0.25 * model.head(model.embed(PICTURES)), rtol=1e-6)


def test_without_a_dense_layer_the_places_are_averaged():
    model = ConvNet(4, 4, 1, 2, ConvNetSettings().layers)
    assert model.embed(PICTURES).shape == (2, 64)
    np.testing.assert_allclose(model.head(model.embed(PICTURES)), model(PICTURES), atol=1e-6)


def test_dropout_and_normalization_are_those_of_training():
    model = ConvNet(4, 4, 1, 2, [ConvolutionLayerSettings(filters=16), DropoutLayerSettings(name="dropout", rate=0.5)])
    assert not np.allclose(model(PICTURES, training=True), model(PICTURES, training=True))
    tf.debugging.assert_equal(model(PICTURES), model(PICTURES))


def test_a_network_that_begins_as_identity_gives_the_picture_back():
    """Where there are more filters than channels, the first ones do; the others are drawn."""
    layers = [
        ConvolutionLayerSettings(filters=filters, kernel_size=size, normalization="none", begins_as="identity")
        for filters, size in ((3, 3), (2, 5))
    ]
    model = ConvNet(4, 4, 1, 2, layers)
    np.testing.assert_allclose(model.features(np.abs(PICTURES))[..., :1], np.abs(PICTURES), atol=1e-6)
    first, second = (model.get_weights()[index] for index in (0, 2))
    assert np.count_nonzero(first[..., 0]) == 1
    assert np.count_nonzero(first[..., 1:]) == 18
    assert np.count_nonzero(second) == 2
