"""A dense layer over the last axis: one flat matrix product, whatever the rank of its input."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


def truncated_normal(stddev: float | None) -> keras.initializers.Initializer | str:
    """Normal, cut at two standard deviations, as the weights of BERT begin; Glorot's uniform one for None."""
    return "glorot_uniform" if stddev is None else keras.initializers.TruncatedNormal(stddev=stddev)


class Projection(keras.layers.Layer):
    r"""$y = x W^\top + b$ over the last axis.

    The leading axes are folded into one, so that the product is a single large one. (A batched product, which Keras's
    `Dense` uses for rank 3, is slower on CPU and sums its gradient in a second pass.) The kernel has a row for each
    unit: with a row for each input, the few rows of a decoding step take twice as long where there are 1,024 units.

    Args:
        units: size of the last axis of the result.
        use_bias: add `b`.
        kernel_initializer: Keras initializer or name; kernel has shape [units, inputs].
        parts: where one product makes several things of the same size, the name of each, in their order.

    Attributes:
        adapter: None, or the function of x [N, inputs] that gives [N, units] in place of the product with the kernel.
    """

    def __init__(
        self,
        units: int,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        parts: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units, self.parts = units, tuple(parts)
        self.adapter = None
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(self.units, input_shape[-1]), initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros") if self.use_bias else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [..., inputs] -> [..., units]."""
        rows = tf.reshape(x, [-1, x.shape[-1]])
        if self.adapter is None:
            y = product(rows, tf.convert_to_tensor(self.kernel), self.kernel.trainable)
        else:
            y = self.adapter(rows)
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.convert_to_tensor(self.bias))
        if len(x.shape) == 2:
            return y
        result = tf.reshape(y, tf.concat([tf.shape(x)[:-1], [self.units]], axis=0))
        result.set_shape([*x.shape[:-1], self.units])
        return result


def product(x: tf.Tensor, kernel: tf.Tensor, trains_kernel: bool = True) -> tf.Tensor:
    """The product with a kernel; its gradient takes the fastest way there is on a CPU.

    Args:
        x: [N, inputs].
        kernel: [units, inputs].
        trains_kernel: False computes no gradient of it, which is half of the work.

    Returns:
        [N, units]
    """

    @tf.custom_gradient
    def multiplied_by_frozen(x):
        return tf.matmul(x, kernel, transpose_b=True), lambda upstream: tf.matmul(upstream, kernel)

    @tf.custom_gradient
    def multiplied(x, kernel):
        def backward(upstream):
            x_gradient = tf.matmul(upstream, kernel)
            with tf.control_dependencies([x_gradient]):  # side by side they would take the cache from each other
                return x_gradient, inner_product(upstream, x)

        return tf.matmul(x, kernel, transpose_b=True), backward

    return multiplied(x, kernel) if trains_kernel else multiplied_by_frozen(x)


def inner_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    r"""$a^\top b$; a: [N, I], b: [N, U] -> [I, U].

    oneDNN walks down the columns of one factor. Where I or U is small that takes up to twice the time of a plain
    product, and more than that where rows lie 2 KiB or a multiple of it apart, because they then share their places
    in the cache. So one factor is transposed in memory first: the one with such rows, or else the narrower.
    """
    narrow, wide = sorted((a.shape[1], b.shape[1]))
    if narrow >= 384:
        return tf.matmul(a, b, transpose_a=True)
    chosen = wide if wide % 512 == 0 else narrow
    if a.shape[1] == chosen:
        return tf.matmul(transposed(a), b)
    return tf.transpose(tf.matmul(transposed(b), a))


def transposed(x: tf.Tensor) -> tf.Tensor:
    """[N, M] -> [M, N] in memory: a plain `tf.transpose` would be made part of the product again."""
    return tf.reshape(tf.transpose(x[:, tf.newaxis], [2, 1, 0]), [x.shape[1], -1])
