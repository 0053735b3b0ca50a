"""Layer normalization with a short gradient and a gate that can blend it in while a model trains; that of batches."""

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


class BatchNormalization(keras.layers.Layer):
    r"""$y = \gamma\, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ for each channel, over all pictures and places.

    In training mean and variance are those of the batch, and running ones follow them,
    $\bar\mu \leftarrow m\, \bar\mu + (1 - m)\, \mu$, with the variance of a sample (N - 1); answers are normalized by
    these. So is training where the scale is frozen, and nothing runs then.

    Args:
        momentum: m.
        epsilon: added to the variance.
        synchronized: whether the batch is that of all replicas, or that of each by itself. Micro-batches are always
            normalized one by one.

    It computes in float32 whatever the precision of x, which is that of y.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, synchronized: bool = False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"}, autocast=False)
        self.momentum, self.epsilon, self.synchronized = momentum, epsilon, synchronized

    def build(self, input_shape):
        def add(name: str, initializer: str, **options) -> keras.Variable:
            return self.add_weight(name=name, shape=(input_shape[-1],), initializer=initializer, **options)

        self.scale, self.offset = add("scale", "ones"), add("offset", "zeros")
        self.mean = add("mean", "zeros", trainable=False, aggregation="mean")
        self.variance = add("variance", "ones", trainable=False, aggregation="mean")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, H, W, C] -> [B, H, W, C]."""
        if not training or not self.scale.trainable:
            return self._normalized(x, self.mean, self.variance)[0]
        replica = tf.distribute.get_replica_context()
        if self.synchronized and replica is not None and replica.num_replicas_in_sync > 1:
            y, mean, variance = self._normalized_together(x, replica)
        else:
            y, mean, variance = self._normalized(x)
        for running, found in ((self.mean, mean), (self.variance, variance)):
            found = tf.where(tf.shape(x)[0] > 0, found, running)  # a replica may get nothing of a small batch
            running.assign(self.momentum * running + (1.0 - self.momentum) * found)
        return y

    def _normalized(self, x, mean=(), variance=()) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """By what is given or, where nothing is, by mean and variance of x; returns these, too."""
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=tf.convert_to_tensor(self.scale),
            offset=tf.convert_to_tensor(self.offset),
            mean=tf.convert_to_tensor(mean, tf.float32),
            variance=tf.convert_to_tensor(variance, tf.float32),
            epsilon=self.epsilon,
            is_training=isinstance(mean, tuple),
        )
        return y, mean, variance

    def _normalized_together(
        self, x: tf.Tensor, replica: tf.distribute.ReplicaContext
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """By mean and variance of the x of all replicas, in two rounds, so that no digits are lost."""
        axes = [0, 1, 2]
        kind, x = x.dtype, tf.cast(x, tf.float32)

        def over_all(values: tf.Tensor) -> tf.Tensor:
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)

        count = over_all(tf.cast(tf.size(x) / x.shape[-1], tf.float32))
        mean = over_all(tf.reduce_sum(x, axes)) / count  # [C]
        centred = x - mean
        variance = over_all(tf.reduce_sum(tf.square(centred), axes)) / count
        y = centred * (tf.math.rsqrt(variance + self.epsilon) * self.scale) + self.offset
        return tf.cast(y, kind), mean, variance * count / tf.maximum(count - 1.0, 1.0)

    def as_linear(self) -> tuple[tf.Tensor, tf.Tensor]:
        """What each channel is multiplied by, and what is then added to it, when it answers: two tensors [C]."""
        factor = self.scale * tf.math.rsqrt(self.variance + self.epsilon)
        return factor, self.offset - self.mean * factor


class ChannelGroupNormalization(keras.layers.GroupNormalization):
    """Normalizes groups of 16 channels of each picture by itself, all channels where there are fewer.

    So a batch may be of any size, and is split without a trace. The number of channels must be a multiple of 16.

    Reference: [Wu and He, 2018](https://arxiv.org/abs/1803.08494).
    """

    def build(self, input_shape):
        self.groups = max(1, input_shape[-1] // 16)
        super().build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, H, W, C] -> [B, H, W, C], in training as in answers."""
        return super().call(x)


def normalization_of_channels(kind: str, **kwargs) -> keras.layers.Layer:
    """What normalizes pictures [B, H, W, C]: `batch`, `synchronized_batch` or `group`."""
    if kind == "group":
        return ChannelGroupNormalization(**kwargs)
    return BatchNormalization(synchronized=kind == "synchronized_batch", **kwargs)
