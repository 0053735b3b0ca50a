"""A plain convolutional network, whose layers stand in the recipe one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasllm.layers.activation import activation as activation_of
from kerasllm.layers.convolution import Convolution, IdentityAndRandom, NormalizedConvolution
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.normalization import normalization_of_channels
from kerasllm.layers.picture_network import PictureNetwork
from kerasllm.layers.whitening import Whitening
from kerasllm.models.settings import (
    ConvNetSettings,
    ConvolutionLayerSettings,
    DenseLayerSettings,
    DropoutLayerSettings,
    PoolLayerSettings,
    WhiteningLayerSettings,
)


class ConvNet(PictureNetwork):
    """Tells what a picture shows.

    Args:
        height, width, channels: H, W and D of the pictures.
        num_classes: C.
        layers: settings of each, in their order; before the first dense one what was seen is averaged over all places.
            One more dense layer, without activation, gives the logits.
        logit_scale: what the logits are multiplied by.

    Reference: [LeCun et al., 1998](https://doi.org/10.1109/5.726791).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        layers: Sequence = ConvNetSettings().layers,
        logit_scale: float = ConvNetSettings().logit_scale,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.parts = [_build_layer(each, f"layer_{index}") for index, each in enumerate(layers)]
        is_dense = [isinstance(each, DenseLayerSettings) for each in layers]
        self.first_dense = is_dense.index(True) if True in is_dense else len(layers)
        self.logit_scale = logit_scale
        self.head = keras.layers.Dense(num_classes, dtype="float32", name="head")
        self.build_for(height, width, channels)

    def embed(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, F], what the last layer is given."""
        return self._go_on(self.features(pictures, training=training), training)

    def see(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, H', W', F], what the layers before the first dense one see at each place."""
        return self._apply(self.parts[: self.first_dense], pictures, training)

    def logits_of(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """features: [B, H', W', F], from `features` -> logits [B, C]."""
        return self.logit_scale * self.head(self._go_on(features, training))

    def _go_on(self, features: tf.Tensor, training: bool) -> tf.Tensor:
        return self._apply(self.parts[self.first_dense :], tf.reduce_mean(features, axis=[1, 2]), training)

    def _apply(self, parts: Sequence[keras.layers.Layer], x: tf.Tensor, training: bool) -> tf.Tensor:
        for part in parts:
            x = part(x, training=training)
        return x


class ActivatedConvolution(keras.layers.Layer):
    """Convolution, the greatest of each square if asked for, normalization if there is one, and activation:
    [B, H, W, D] -> [B, H', W', C]."""

    def __init__(self, settings: ConvolutionLayerSettings, **kwargs):
        super().__init__(**kwargs)
        self.activation = activation_of(settings.activation)
        plain = settings.normalization == "none"
        initializer = IdentityAndRandom() if settings.begins_as == "identity" else "he_normal"
        size = settings.filters, settings.kernel_size, settings.strides
        convolution = Convolution(*size, use_bias=plain, initializer=initializer, name="convolution")
        parts: list[keras.layers.Layer] = [convolution]
        if not plain:
            parts.append(normalization_of_channels(settings.normalization, name="normalization"))
        if settings.pool > 1:  # between the two, so that they cannot be folded
            parts.insert(1, Pool(settings.pool))
        elif not plain:
            parts = [NormalizedConvolution(*parts, name="normalized")]
        self.parts = parts

    def build(self, input_shape):
        *before, last = self.parts
        for part in before:
            part.build(input_shape)
            input_shape = part.compute_output_shape(input_shape)
        last.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for part in self.parts:
            x = part(x, training=training)
        return self.activation(x)


class ActivatedWhitening(Whitening):
    """Whitening and activation: [B, H, W, D] -> [B, H', W', C]."""

    def __init__(self, settings: WhiteningLayerSettings, **kwargs):
        super().__init__(settings.kernel_size, settings.padding, **kwargs)
        self.activation = activation_of(settings.activation)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.activation(super().call(x))


class Pool(keras.layers.Layer):
    """The greatest of each square of places: [B, H, W, C] -> [B, H / s, W / s, C], rounded down.

    What is narrower than s is one square as it is, so that something is left of pictures of any size.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        sides = [min(self.size, side) for side in x.shape[1:3]]
        return tf.nn.max_pool2d(x, sides, sides, "VALID")

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return batch, max(1, height // self.size), max(1, width // self.size), channels


class ActivatedDense(keras.layers.Dense):
    """Dense and relu: [B, D] -> [B, F]."""

    def __init__(self, units: int, **kwargs):
        super().__init__(units, activation="relu", kernel_initializer="he_normal", **kwargs)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return super().call(x)


def _build_layer(settings, name: str) -> keras.layers.Layer:
    if isinstance(settings, ConvolutionLayerSettings):
        return ActivatedConvolution(settings, name=name)
    if isinstance(settings, WhiteningLayerSettings):
        return ActivatedWhitening(settings, name=name)
    if isinstance(settings, PoolLayerSettings):
        return Pool(settings.size, name=name)
    if isinstance(settings, DropoutLayerSettings):
        return Dropout(settings.rate, name=name)
    assert isinstance(settings, DenseLayerSettings)
    return ActivatedDense(settings.units, name=name)
