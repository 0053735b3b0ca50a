"""ResNets of keras-hub: our model with their weights sees the same. The presets are written here, not downloaded."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.models.published.resnet_presets import assign_preset, numbers_of, read_resnet_preset, scaling_of
from kerasllm.models.resnet import ResNet
from kerasllm.picture_task import PictureInput, PictureSettings

DRAW = np.random.default_rng(0)


def write_preset(directory, block_type, pre_activation, filters=(64, 128), **converter):
    """A small ResNet with weights and statistics that are not those of the beginning."""
    import keras_nlp

    backbone = keras_nlp.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=list(filters),
        stackwise_num_blocks=[2, 1][: len(filters)],
        stackwise_num_strides=[1, 2][: len(filters)],
        block_type=block_type,
        use_pre_activation=pre_activation,
    )
    for variable in backbone.variables:
        if len(variable.shape) == 1:
            variable.assign(DRAW.uniform(0.5, 1.5, variable.shape))
    backbone.save_to_preset(str(directory))
    if converter:
        keras_nlp.layers.ResNetImageConverter(**converter).save_to_preset(str(directory))
    return backbone


@pytest.mark.parametrize(
    ("block_type", "pre_activation"),
    [("basic_block", False), ("basic_block", True), ("bottleneck_block", False), ("bottleneck_block", True)],
)
def test_our_model_sees_the_same(tmp_path, block_type, pre_activation):
    theirs = write_preset(tmp_path, block_type, pre_activation)
    backbone = read_resnet_preset(str(tmp_path))
    ours = ResNet(64, 48, 3, 5, **numbers_of(backbone))
    assign_preset(ours, backbone)
    pictures = tf.constant(DRAW.normal(size=(2, 64, 48, 3)), tf.float32)
    expected = theirs(pictures, training=False).numpy()
    np.testing.assert_allclose(ours.features(pictures), expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_pictures_are_scaled_as_theirs(tmp_path):
    import keras_nlp

    scaling = {"scale": [0.017, 0.018, 0.019], "offset": [-2.1, -2.0, -1.8]}
    write_preset(tmp_path, "basic_block", False, (64,), image_size=(24, 32), **scaling)
    settings = PictureSettings(**scaling_of(str(tmp_path)))
    assert settings.shape == (24, 32, 3)
    pixels = DRAW.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    expected = keras_nlp.layers.ImageConverter.from_preset(str(tmp_path))(pixels)
    np.testing.assert_allclose(PictureInput(settings).seen(tf.constant(pixels)), expected, atol=1e-4)


def test_what_cannot_be_taken(tmp_path):
    with pytest.raises(UserError, match=r"^preset:\S+nothing: no weights of a ResNet can be loaded \("):
        read_resnet_preset(str(tmp_path / "nothing"))
    write_preset(tmp_path, "basic_block_vd", False)
    with pytest.raises(UserError, match=r"is a ResNet of another shape \(basic_block_vd\); take one without `vd`"):
        read_resnet_preset(str(tmp_path))
    other = ResNet(64, 64, 3, 5, blocks=(2, 1), filters=(64, 96), stem="large")
    backbone = write_preset(tmp_path / "plain", "basic_block", False)
    before = other.stem.convolution.convolution.kernel.numpy()
    with pytest.raises(ValueError, match=r"has shape \(1, 1, 64, 96\), the preset \(1, 1, 64, 128\)"):
        assign_preset(other, backbone)
    np.testing.assert_array_equal(other.stem.convolution.convolution.kernel, before)
