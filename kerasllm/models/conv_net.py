"""A plain convolutional network, whose layers stand in the recipe one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasllm.layers.convolution import Convolution, NormalizedConvolution
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.normalization import normalization_of_channels
from kerasllm.models.settings import (
    ConvNetSettings,
    ConvolutionLayerSettings,
    DenseLayerSettings,
    DropoutLayerSettings,
    PoolLayerSettings,
)


class ConvNet(keras.Model):
    """Tells what a picture shows.

    Args:
        height, width, channels: H, W and D of the pictures.
        num_classes: C.
        layers: settings of each, in their order; before the first dense one what was seen is averaged over all places.
            One more dense layer, without activation, gives the logits.

    Reference: [LeCun et al., 1998](https://doi.org/10.1109/5.726791).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        layers: Sequence = ConvNetSettings().layers,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.parts = [_build_layer(each, f"layer_{index}") for index, each in enumerate(layers)]
        self.head = keras.layers.Dense(num_classes, name="head")
        self(tf.zeros([1, height, width, channels]))  # now, so that weights can be loaded and counted

    def call(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> logits [B, C]."""
        return self.head(self.embed(pictures, training=training))

    def embed(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, F], what the last layer is given."""
        x = pictures
        for part in self.parts:
            x = part(x, training=training)
        return x if len(x.shape) == 2 else tf.reduce_mean(x, axis=[1, 2])


class ActivatedConvolution(keras.layers.Layer):
    """Convolution, normalization if there is one, and relu: [B, H, W, D] -> [B, H / s, W / s, C]."""

    def __init__(self, settings: ConvolutionLayerSettings, **kwargs):
        super().__init__(**kwargs)
        plain = settings.normalization == "none"
        convolution = Convolution(
            settings.filters, settings.kernel_size, settings.strides, use_bias=plain, name="convolution"
        )
        self.normalized = (
            None
            if plain
            else NormalizedConvolution(
                convolution, normalization_of_channels(settings.normalization, name="normalization"), name="normalized"
            )
        )
        self.convolution = convolution if plain else None

    def build(self, input_shape):
        (self.convolution or self.normalized).build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.nn.relu(self.normalized(x, training=training) if self.normalized else self.convolution(x))


class Pool(keras.layers.Layer):
    """The greatest of each square of places: [B, H, W, C] -> [B, H / s, W / s, C]."""

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.nn.max_pool2d(x, self.size, self.size, "SAME")


class ActivatedDense(keras.layers.Dense):
    """Dense and relu, of the mean over all places where there are any: [B, ..., D] -> [B, F]."""

    def __init__(self, units: int, **kwargs):
        super().__init__(units, activation="relu", kernel_initializer="he_normal", **kwargs)

    def build(self, input_shape):
        super().build((None, input_shape[-1]))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return super().call(x if len(x.shape) == 2 else tf.reduce_mean(x, axis=[1, 2]))


def _build_layer(settings, name: str) -> keras.layers.Layer:
    if isinstance(settings, ConvolutionLayerSettings):
        return ActivatedConvolution(settings, name=name)
    if isinstance(settings, PoolLayerSettings):
        return Pool(settings.size, name=name)
    if isinstance(settings, DropoutLayerSettings):
        return Dropout(settings.rate, name=name)
    assert isinstance(settings, DenseLayerSettings)
    return ActivatedDense(settings.units, name=name)
