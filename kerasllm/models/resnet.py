"""ResNet: a deep convolutional network, each block of which learns what is to be added to its input."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasllm.layers.convolution import Convolution, NormalizedConvolution
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.normalization import normalization_of_channels
from kerasllm.layers.picture_network import PictureNetwork


class ResNet(PictureNetwork):
    """Tells what a picture shows.

    Args:
        height, width, channels: H, W and D of the pictures.
        num_classes: C.
        blocks: of each stage, how many; a stage after the first halves height and width.
        filters: of each stage, the channels of its blocks; a bottleneck gives four times as many.
        bottleneck: three convolutions in a block, 1 x 1, 3 x 3 and 1 x 1, and not two of 3 x 3.
        stem: "small" begins with one convolution of 3 x 3, "large" with one of 7 x 7 in steps of 2 and the greatest of
            each 3 x 3 in steps of 2, for pictures of 224 x 224 or so.
        order: "post", convolution, normalization, activation; or "pre", normalization, activation, convolution.
        normalization: "batch", "synchronized_batch" (over all replicas) or "group".
        dropout: rate before the last layer.

    Published sizes: CIFAR's ResNet-20, 32 and 56 have blocks [n, n, n] with n 3, 5 and 9, filters [16, 32, 64] and the
    small stem. ImageNet's 18 and 34 have blocks [2, 2, 2, 2] and [3, 4, 6, 3], filters [64, 128, 256, 512] and the
    large stem, and 50 is 34 with bottlenecks.

    References: [He et al., 2015](https://arxiv.org/abs/1512.03385); pre-activation
    [He et al., 2016](https://arxiv.org/abs/1603.05027).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        blocks: Sequence[int] = (3, 3, 3),
        filters: Sequence[int] = (16, 32, 64),
        bottleneck: bool = False,
        stem: str = "small",
        order: str = "post",
        normalization: str = "batch",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.stem = Stem(filters[0], stem == "large", order == "pre", normalization, name="stem")
        self.blocks = [
            ResidualBlock(
                stage_filters,
                strides=2 if stage > 0 and index == 0 else 1,
                bottleneck=bottleneck,
                pre_activation=order == "pre",
                normalization=normalization,
                name=f"stage_{stage}_block_{index}",
            )
            for stage, (stage_blocks, stage_filters) in enumerate(zip(blocks, filters, strict=True))
            for index in range(stage_blocks)
        ]
        self.last_normalization = None
        if order == "pre":
            self.last_normalization = normalization_of_channels(normalization, name="last_normalization")
        self.dropout = Dropout(dropout, name="dropout")
        self.head = keras.layers.Dense(num_classes, dtype="float32", name="head")
        self.build_for(height, width, channels)

    def logits_of(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """features: [B, H', W', F], from `features` -> logits [B, C]."""
        return self.head(self.dropout(tf.reduce_mean(features, axis=[1, 2]), training=training))

    def see(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, H', W', F], what the last stage sees at each place."""
        x = self.stem(pictures, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        if self.last_normalization is not None:
            x = tf.nn.relu(self.last_normalization(x, training=training))
        return x


class Stem(keras.layers.Layer):
    """What comes before the blocks: pictures [B, H, W, D] -> [B, H', W', filters].

    Args:
        is_large: see `ResNet`.
        pre_activation: the first block then begins with the normalization.
    """

    def __init__(self, filters: int, is_large: bool, pre_activation: bool, normalization: str, **kwargs):
        super().__init__(**kwargs)
        self.is_large = is_large
        convolution = Convolution(filters, 7 if is_large else 3, strides=2 if is_large else 1, name="convolution")
        self.activates = not pre_activation
        self.convolution: keras.layers.Layer = convolution
        if self.activates:
            normalize = normalization_of_channels(normalization, name="normalization")
            self.convolution = NormalizedConvolution(convolution, normalize, name="normalized")

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = tf.nn.relu(self.convolution(x, training=training)) if self.activates else self.convolution(x)
        if self.is_large:
            x = tf.nn.max_pool2d(x, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
        return x


class ResidualBlock(keras.layers.Layer):
    r"""Adds what it learns to its input: $r(x + f(x))$ with $r$ for relu, or in pre-activation $x + f(r(n(x)))$.

    Where f changes the shape, x goes through a convolution of 1 x 1.

    Args:
        filters: of its convolutions.
        strides: of the first 3 x 3.
        bottleneck, pre_activation, normalization: see `ResNet`.
    """

    def __init__(
        self, filters: int, strides: int, bottleneck: bool, pre_activation: bool, normalization: str, **kwargs
    ):
        super().__init__(**kwargs)
        self.strides, self.pre_activation = strides, pre_activation
        self.filters = 4 * filters if bottleneck else filters
        sizes = [(filters, 1, 1), (filters, 3, strides), (self.filters, 1, 1)]
        if not bottleneck:
            sizes = [(filters, 3, strides), (filters, 3, 1)]
        self.normalize, self.shortcut, self.normalization = None, None, normalization
        if pre_activation:
            self.normalize = normalization_of_channels(normalization, name="normalization")
        self.convolutions: list[keras.layers.Layer] = []
        for number, size in enumerate(sizes):
            is_plain = pre_activation and number == len(sizes) - 1
            self.convolutions.append(self._convolution(*size, f"convolution_{number}", is_plain))

    def _convolution(self, filters: int, size: int, strides: int, name: str, is_plain: bool) -> keras.layers.Layer:
        """A convolution, with the normalization of its result unless it is a plain one."""
        if is_plain:
            return Convolution(filters, size, strides, name=name)
        convolution = Convolution(filters, size, strides, name="convolution")
        normalize = normalization_of_channels(self.normalization, name="normalization")
        return NormalizedConvolution(convolution, normalize, name=name)

    def build(self, input_shape):
        if self.normalize is not None:
            self.normalize.build(input_shape)
        if self.strides > 1 or input_shape[-1] != self.filters:
            self.shortcut = self._convolution(self.filters, 1, self.strides, "shortcut", self.pre_activation)
            self.shortcut.build(input_shape)
        shape = input_shape
        for convolution in self.convolutions:
            convolution.build(shape)
            shape = convolution.compute_output_shape(shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, H, W, D] -> [B, H / s, W / s, C]."""
        if self.pre_activation:
            y = tf.nn.relu(self.normalize(x, training=training))
            kept = x if self.shortcut is None else self.shortcut(y)
            return kept + self._convolve(y, training)
        kept = x if self.shortcut is None else self.shortcut(x, training=training)
        return tf.nn.relu(kept + self._convolve(x, training))

    def _convolve(self, x: tf.Tensor, training: bool) -> tf.Tensor:
        """One convolution after the other, with an activation in between."""
        for convolution in self.convolutions[:-1]:
            x = tf.nn.relu(convolution(x, training=training))
        last = self.convolutions[-1]
        return last(x) if self.pre_activation else last(x, training=training)
