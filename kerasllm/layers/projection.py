"""A dense layer over the last axis: one flat matrix product, whatever the rank of its input."""

from __future__ import annotations

import keras
import tensorflow as tf


class Projection(keras.layers.Layer):
    r"""$y = x W + b$ over the last axis.

    The leading axes are folded into one, so that the product is a single large one. (A batched product, which Keras's
    `Dense` uses for rank 3, is slower on CPU and sums its gradient in a second pass.)

    Args:
        units: size of the last axis of the result.
        use_bias: add `b`.
        kernel_initializer: Keras initializer or name; kernel has shape [inputs, units].
    """

    def __init__(self, units: int, use_bias: bool = True, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1], self.units), initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros") if self.use_bias else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., inputs] -> [..., units]."""
        y = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.convert_to_tensor(self.bias))
        result = tf.reshape(y, tf.concat([tf.shape(x)[:-1], [self.units]], axis=0))
        result.set_shape([*x.shape[:-1], self.units])
        return result
