"""Presets of keras-hub for pictures: the numbers, the weights and the scaling of their ResNetBackbone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasllm.data.published import PRESET
from kerasllm.errors import UserError
from kerasllm.layers.convolution import NormalizedConvolution
from kerasllm.models.resnet import ResNet


def read_resnet_preset(name: str) -> Any:
    """The `ResNetBackbone` of a preset.

    Args:
        name: as `from_preset` takes it: a name, a URL of a hub or a directory.

    Raises:
        UserError: there is no such preset, or it is no ResNet that `ResNet` can be.
    """
    import keras_nlp

    try:
        backbone = keras_nlp.models.ResNetBackbone.from_preset(name)
    except Exception as error:  # whatever the download or the files raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{PRESET}{name}: no weights of a ResNet can be loaded ({reason})") from error
    strides, blocks = backbone.stackwise_num_strides, backbone.stackwise_num_blocks
    is_known = list(strides) == [1, *[2] * (len(blocks) - 1)] and backbone.input_conv_kernel_sizes == [7]
    if backbone.block_type.endswith("vd") or not is_known:
        raise UserError(f"{PRESET}{name}: is a ResNet of another shape ({backbone.block_type}); take one without `vd`")
    return backbone


def numbers_of(backbone: Any) -> dict[str, Any]:
    """What a recipe would say in its section `model`."""
    return {
        "blocks": tuple(backbone.stackwise_num_blocks),
        "filters": tuple(backbone.stackwise_num_filters),
        "bottleneck": backbone.block_type == "bottleneck_block",
        "stem": "large",
        "order": "pre" if backbone.use_pre_activation else "post",
    }


def scaling_of(name: str) -> dict[str, Any]:
    """What a recipe would say in its section `picture`: the size that the preset was trained with, mean and stddev.

    A preset multiplies pixels from 0 to 255 by a scale and adds an offset; without either it leaves them.
    """
    import keras_nlp

    converter = keras_nlp.layers.ImageConverter.from_preset(name)
    height, width = converter.image_size or (224, 224)
    scale = np.broadcast_to(1.0 if converter.scale is None else converter.scale, 3)
    offset = np.broadcast_to(0.0 if converter.offset is None else converter.offset, 3)
    stddev = 1.0 / (255.0 * scale)
    means = -offset * stddev
    return {
        "height": int(height),
        "width": int(width),
        "channels": 3,
        "mean": tuple(map(float, means)),
        "stddev": tuple(map(float, stddev)),
    }


def assign_preset(model: ResNet, backbone: Any) -> None:
    """Gives a model of the same numbers all weights but those of its head.

    Raises:
        ValueError: a shape differs; then nothing is set.
    """
    pairs = list(_pairs(model, backbone))
    for variable, values in pairs:
        if variable.shape != values.shape:
            raise ValueError(f"{variable.path} has shape {tuple(variable.shape)}, the preset {tuple(values.shape)}")
    for variable, values in pairs:
        variable.assign(values)


def _pairs(model: ResNet, backbone: Any) -> Iterator[tuple[Any, Any]]:
    """Each variable of a model, and what it becomes."""
    yield from _of_convolution(model.stem.convolution, backbone, "conv1")
    names = [
        f"stack{stage}_block{index}"
        for stage, count in enumerate(backbone.stackwise_num_blocks)
        for index in range(count)
    ]
    for block, name in zip(model.blocks, names, strict=True):
        if block.normalize is not None:
            yield from _of_normalization(block.normalize, backbone.get_layer(f"{name}_pre_activation_bn"))
        if block.shortcut is not None:
            yield from _of_convolution(block.shortcut, backbone, f"{name}_0")
        for number, convolution in enumerate(block.convolutions, start=1):
            yield from _of_convolution(convolution, backbone, f"{name}_{number}")
    if model.last_normalization is not None:
        yield from _of_normalization(model.last_normalization, backbone.get_layer("post_bn"))


def _of_convolution(layer: Any, backbone: Any, name: str) -> Iterator[tuple[Any, Any]]:
    theirs = backbone.get_layer(f"{name}_conv")
    if not isinstance(layer, NormalizedConvolution):
        yield layer.kernel, theirs.kernel
        return
    yield layer.convolution.kernel, theirs.kernel
    yield from _of_normalization(layer.normalization, backbone.get_layer(f"{name}_bn"))


def _of_normalization(layer: Any, theirs: Any) -> Iterator[tuple[Any, Any]]:
    yield layer.scale, theirs.gamma
    yield layer.offset, theirs.beta
    yield layer.mean, theirs.moving_mean
    yield layer.variance, theirs.moving_variance
