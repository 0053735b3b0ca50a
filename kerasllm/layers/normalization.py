"""Layer normalization with a short gradient."""

from __future__ import annotations

import keras
import tensorflow as tf


class LayerNormalization(keras.layers.Layer):
    r"""$y = \gamma\, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ over the last axis.

    Args:
        epsilon: added to the variance.

    Reference: [Ba et al., 2016](https://arxiv.org/abs/1607.06450).
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
        self.offset = self.add_weight(name="offset", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., D] -> [..., D]."""
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        return centred * (tf.math.rsqrt(variance + self.epsilon) * self.scale) + self.offset
