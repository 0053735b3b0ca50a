"""Layer normalization with a short gradient."""

from __future__ import annotations

import keras
import tensorflow as tf


class LayerNormalization(keras.layers.Layer):
    r"""$y = \gamma\, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ over the last axis.

    Args:
        epsilon: added to the variance.

    It computes in float32 whatever the precision around it.

    Reference: [Ba et al., 2016](https://arxiv.org/abs/1607.06450).
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.epsilon = epsilon

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
        self.offset = self.add_weight(name="offset", shape=(input_shape[-1],), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., D] -> [..., D]."""
        return normalize(x, tf.convert_to_tensor(self.scale), tf.convert_to_tensor(self.offset), self.epsilon)


def normalize(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    r"""The formula of `LayerNormalization`, with the gradient in closed form, in half as many passes over memory.

    With $\hat x = (x - \mu) / \sigma$ and $g = \gamma \, \partial y$, both means over the last axis:
    $$\partial x = (g - \overline{g} - \hat x \, \overline{g \hat x}) / \sigma$$
    """

    @tf.custom_gradient
    def normalized(x, scale, offset):
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        inverse_deviation = tf.math.rsqrt(variance + epsilon)
        standard = centred * inverse_deviation  # [..., D]

        def backward(upstream):
            rows = list(range(len(x.shape) - 1))
            aligned = upstream * standard
            scaled, scaled_aligned = upstream * scale, aligned * scale
            centre = tf.reduce_mean(scaled, axis=-1, keepdims=True)
            slope = tf.reduce_mean(scaled_aligned, axis=-1, keepdims=True)
            x_gradient = (scaled - (centre + standard * slope)) * inverse_deviation
            return x_gradient, tf.reduce_sum(aligned, axis=rows), tf.reduce_sum(upstream, axis=rows)

        return standard * scale + offset, backward

    return normalized(x, scale, offset)
