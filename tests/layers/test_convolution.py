"""Convolutions by their formula, normalization of batches by hand, and one folded into the other."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.convolution import Convolution, NormalizedConvolution, fold_normalizations
from kerasllm.layers.normalization import BatchNormalization, normalization_of_channels
from kerasllm.models.resnet import ResNet

DRAW = np.random.default_rng(0)
PICTURES = DRAW.normal(size=(3, 6, 5, 4)).astype("float32")


def convolved(pictures, kernel, strides):
    """The formula, one place after the other."""
    size = kernel.shape[0]
    margin = (size - 1) // 2
    padded = np.pad(pictures, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    rows, columns = (-(-extent // strides) for extent in pictures.shape[1:3])
    result = np.zeros((len(pictures), rows, columns, kernel.shape[3]), "float32")
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, strides * i : strides * i + size, strides * j : strides * j + size]
            result[:, i, j] = np.einsum("buvd,uvdc->bc", patch, kernel)
    return result


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_formula(size, strides):
    layer = Convolution(7, size, strides)
    layer.build(PICTURES.shape)
    expected = convolved(PICTURES, layer.kernel.numpy(), strides)
    np.testing.assert_allclose(layer(PICTURES), expected, atol=1e-5)
    assert layer.compute_output_shape(PICTURES.shape)[1:] == expected.shape[1:]


def test_a_bias_is_added():
    layer = Convolution(2, 1, use_bias=True)
    layer.build(PICTURES.shape)
    without = layer(PICTURES)
    layer.bias.assign([1.0, -2.0])
    np.testing.assert_allclose(layer(PICTURES) - without, np.broadcast_to([1.0, -2.0], without.shape), atol=1e-6)


@pytest.fixture
def normalization():
    """One whose weights are all others than at first."""
    layer = BatchNormalization(momentum=0.8, epsilon=1e-3)
    layer.build(PICTURES.shape)
    layer.set_weights([DRAW.uniform(0.5, 2.0, 4), DRAW.normal(size=4), DRAW.normal(size=4), DRAW.uniform(0.5, 2.0, 4)])
    return layer


def test_a_batch_is_normalized_and_the_running_figures_follow(normalization):
    scale, offset, mean, variance = normalization.get_weights()
    y = normalization(PICTURES, training=True).numpy()
    rows = PICTURES.reshape(-1, 4)
    expected = (PICTURES - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-3) * scale + offset
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(normalization.mean, 0.8 * mean + 0.2 * rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(normalization.variance, 0.8 * variance + 0.2 * rows.var(0, ddof=1), atol=1e-5)


def test_answers_take_the_running_figures_and_leave_them(normalization):
    before = scale, offset, mean, variance = normalization.get_weights()
    expected = (PICTURES - mean) / np.sqrt(variance + 1e-3) * scale + offset
    np.testing.assert_allclose(normalization(PICTURES), expected, atol=1e-5)
    factor, addend = normalization.as_linear()
    np.testing.assert_allclose(PICTURES * factor + addend, expected, atol=1e-5)
    for now, then in zip(normalization.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_nothing_of_a_batch_leaves_the_running_figures(normalization):
    before = normalization.get_weights()
    assert normalization(PICTURES[:0], training=True).shape == PICTURES[:0].shape
    for now, then in zip(normalization.get_weights(), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-6)


def test_a_frozen_one_is_as_in_answers(normalization):
    normalization.scale.trainable = False
    answers = normalization(PICTURES)
    mean = normalization.mean.numpy()
    np.testing.assert_array_equal(normalization(PICTURES, training=True), answers)
    np.testing.assert_array_equal(normalization.mean, mean)


def test_groups_do_not_depend_on_the_batch():
    layer = normalization_of_channels("group")
    x = tf.constant(DRAW.normal(size=(4, 3, 3, 32)).astype("float32"))
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(layer(x[1:2])[0], y[1], atol=1e-5)
    groups = y.reshape(4, 9, 2, 16)
    np.testing.assert_allclose(groups.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(axis=(1, 3)), 1, atol=1e-2)


def test_folded_is_unfolded():
    layer = NormalizedConvolution(Convolution(4, 3), BatchNormalization())
    layer.build(PICTURES.shape)
    for _ in range(3):
        layer(2.0 + PICTURES, training=True)
    expected = layer(PICTURES)
    layer.fold()
    np.testing.assert_allclose(layer(PICTURES), expected, atol=1e-5)
    layer.fold()
    np.testing.assert_allclose(layer(PICTURES), expected, atol=1e-5)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_folded_model_gives_the_same_answers_from_fewer_numbers(order, bottleneck):
    model = ResNet(8, 8, 3, 5, blocks=(1, 2), filters=(16, 32), order=order, bottleneck=bottleneck)
    pictures = DRAW.normal(size=(4, 8, 8, 3)).astype("float32")
    for _ in range(3):
        model(pictures, training=True)
    expected, count = model(pictures), numbers_read(model, pictures)
    fold_normalizations(model)
    np.testing.assert_allclose(model(pictures), expected, atol=1e-5)
    assert numbers_read(model, pictures) < count


def numbers_read(model, pictures):
    """How many variables an exported model would have."""
    function = tf.function(lambda: model(pictures), autograph=False).get_concrete_function()
    return len(function.variables)


ON_REPLICAS = """
from kerasllm.environment import build_strategy, load_tensorflow
load_tensorflow()
import numpy as np, tensorflow as tf
strategy = build_strategy(2)
from kerasllm.layers.normalization import BatchNormalization

x = 3.0 + np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype("float32")
for synchronized in (True, False):
    with strategy.scope():
        layer = BatchNormalization(momentum=0.5, synchronized=synchronized)
        layer.build(x.shape)
    whole = BatchNormalization(momentum=0.5)
    whole.build(x.shape)
    expected = whole(x, training=True).numpy()

    @tf.function(autograph=False)
    def step(part):
        return strategy.run(lambda part: layer(part, training=True), args=(part,))

    parts = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(x[:4] if context.replica_id_in_sync_group == 0 else x[4:]))
    y = np.concatenate(strategy.experimental_local_results(step(parts)))
    same = np.allclose(y, expected, atol=1e-5)
    assert same == synchronized, (same, synchronized)
    if synchronized:
        np.testing.assert_allclose(layer.mean.numpy(), whole.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(layer.variance.numpy(), whole.variance.numpy(), atol=1e-5)
"""


def test_two_replicas_synchronised_equal_one(run_python):
    result = run_python("-c", ON_REPLICAS, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
