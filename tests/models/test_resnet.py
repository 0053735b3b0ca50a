"""ResNet: its published sizes, the sums that its blocks make, and what a batch does to it."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.models.resnet import ResidualBlock, ResNet

DRAW = np.random.default_rng(0)
IMAGENET = {"height": 224, "width": 224, "channels": 3, "num_classes": 1000, "filters": (64, 128, 256, 512)}


@pytest.mark.parametrize(("n", "parameters"), [(3, 0.27e6), (5, 0.46e6), (9, 0.85e6)])
def test_published_sizes_for_cifar(n, parameters):
    """Table 6 of He et al., 2015; ours has convolutions in its shortcuts, which are few."""
    model = ResNet(32, 32, 3, 10, blocks=(n, n, n))
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "parameters"), [((2, 2, 2, 2), False, 11_689_512), ((3, 4, 6, 3), True, 25_557_032)]
)
def test_published_sizes_for_imagenet(blocks, bottleneck, parameters):
    """As torchvision counts ResNet-18 and 50."""
    model = ResNet(**IMAGENET, blocks=blocks, bottleneck=bottleneck, stem="large")
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == parameters
    assert model.features(tf.zeros([1, 224, 224, 3])).shape[1:3] == (7, 7)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_answers_do_not_depend_on_the_batch(order, normalization):
    model = ResNet(8, 8, 3, 4, blocks=(1, 1), filters=(16, 32), order=order, normalization=normalization)
    pictures = DRAW.normal(size=(3, 8, 8, 3)).astype("float32")
    together = model(pictures)
    assert together.shape == (3, 4)
    np.testing.assert_allclose(model(pictures[1:2])[0], together[1], atol=1e-5)
    np.testing.assert_allclose(model.head(model.embed(pictures)), together, atol=1e-6)


def test_a_block_that_has_learnt_nothing_passes_its_input_on():
    x = DRAW.normal(size=(2, 4, 4, 16)).astype("float32")
    for pre_activation in (False, True):
        block = ResidualBlock(16, 1, False, pre_activation, "batch")
        block.build(x.shape)
        last = block.convolutions[-1]
        (last if pre_activation else last.convolution).kernel.assign(tf.zeros([3, 3, 16, 16]))
        np.testing.assert_allclose(block(x), x if pre_activation else np.maximum(x, 0), atol=1e-6)


def test_training_takes_the_batch_and_answers_do_not():
    model = ResNet(8, 8, 1, 2, blocks=(1,), filters=(16,))
    pictures = 5.0 + DRAW.normal(size=(4, 8, 8, 1)).astype("float32")
    assert not np.allclose(model(pictures, training=True), model(pictures), atol=1e-3)
