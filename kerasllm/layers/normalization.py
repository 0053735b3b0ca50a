"""Layer normalization with a short gradient, and a gate that can blend it in while a model trains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import keras
import tensorflow as tf

_GATED: ContextVar[Sequence[str]] = ContextVar("gated layers", default=())


@contextmanager
def gated_normalization(patterns: Sequence[str]) -> Iterator[None]:
    """Layers built in the block have a gate where one of the regular expressions is found in their path."""
    token = _GATED.set(patterns)
    try:
        yield
    finally:
        _GATED.reset(token)


class LayerNormalization(keras.layers.Layer):
    r"""$y = \gamma\, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ over the last axis.

    A layer that was built in `gated_normalization` blends its input in: $(1 - g)\, x + g\, y$ with its gate g, which is
    a weight that is not trained. It is the identity at g = 0 and the plain layer at g = 1.

    Args:
        epsilon: added to the variance.

    It computes in float32 whatever the precision around it.

    Reference: [Ba et al., 2016](https://arxiv.org/abs/1607.06450).
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.epsilon = epsilon
        self.normalization_gate: keras.Variable | None = None

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
        self.offset = self.add_weight(name="offset", shape=(input_shape[-1],), initializer="zeros")
        if any(re.search(pattern, self.path) for pattern in _GATED.get()):
            self.normalization_gate = self.add_weight(
                name="gate", shape=(), initializer="ones", trainable=False, aggregation="only_first_replica"
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., D] -> [..., D]."""
        normal = normalize(x, tf.convert_to_tensor(self.scale), tf.convert_to_tensor(self.offset), self.epsilon)
        if self.normalization_gate is None:
            return normal
        gate = tf.convert_to_tensor(self.normalization_gate)
        return (1.0 - gate) * x + gate * normal


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
