"""Convolutions over pictures, with a normalization that can be folded into them once they are trained."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from kerasllm.layers.normalization import BatchNormalization


class IdentityAndRandom(keras.initializers.Initializer):
    """A kernel [k, k, D, C] whose first filters give what comes in, as many as there are channels or filters, so that
    a deep network begins as a shallow one; the others begin at random, with the variance of He et al.

    Reference: [Zagoruyko and Komodakis, 2017](https://arxiv.org/abs/1706.00388).
    """

    def __call__(self, shape, dtype=None, **kwargs):
        size, _, channels, filters = shape
        kernel = np.array(keras.initializers.HeNormal()(shape, dtype))
        passed = np.arange(min(channels, filters))
        kernel[:, :, :, passed] = 0.0
        kernel[(size - 1) // 2, (size - 1) // 2, passed, passed] = 1.0
        return tf.constant(kernel)


class Convolution(keras.layers.Layer):
    r"""$y_{ijc} = \sum_{u, v, d} w_{uvdc}\, x_{si + u - p,\; sj + v - p,\; d}$, with zeros around the picture.

    There are p = (k - 1) // 2 of them on each side, so that a stride halves a picture of even size, and all strides see
    the same neighbourhood.

    Args:
        filters: C, channels of the result.
        kernel_size: k, odd.
        strides: s.
        use_bias: add a bias.
        initializer: of the kernel [k, k, D, C]; by default its variance is 2 / (k k D), as in
            [He et al., 2015](https://arxiv.org/abs/1502.01852).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        use_bias: bool = False,
        initializer: keras.initializers.Initializer | str = "he_normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.initializer = initializer
        self.filters, self.kernel_size, self.strides, self.use_bias = filters, kernel_size, strides, use_bias
        self.bias: keras.Variable | None = None

    def build(self, input_shape):
        size = self.kernel_size
        shape = (size, size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.initializer)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, D] -> [B, H / s, W / s, C], rounded up."""
        # Padding that is named in numbers would take the gradients to slow operations on CPU.
        margin, padding = (self.kernel_size - 1) // 2, "SAME"
        if self.strides > 1:
            x, padding = tf.pad(x, [[0, 0], [margin, margin], [margin, margin], [0, 0]]), "VALID"
        y = tf.nn.conv2d(x, tf.convert_to_tensor(self.kernel), self.strides, padding)
        return y if self.bias is None else tf.nn.bias_add(y, tf.convert_to_tensor(self.bias))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        return batch, -(-height // self.strides), -(-width // self.strides), self.filters


class NormalizedConvolution(keras.layers.Layer):
    r"""A convolution and what normalizes its result.

    Batch normalization is linear once it is trained, so it can become part of the kernel, as `fold` makes it:
    $$w'_c = w_c\, \gamma_c / \sqrt{\sigma_c^2 + \epsilon}, \quad
    b'_c = \beta_c - \mu_c\, \gamma_c / \sqrt{\sigma_c^2 + \epsilon}$$

    Args:
        convolution: without a bias.
        normalization: a `BatchNormalization`, or any other layer.
    """

    def __init__(self, convolution: Convolution, normalization: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.convolution, self.normalization = convolution, normalization
        self.is_folded = False

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build(self.convolution.compute_output_shape(input_shape))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, H, W, D] -> [B, H / s, W / s, C]."""
        y = self.convolution(x)
        if self.is_folded:
            return tf.nn.bias_add(y, tf.convert_to_tensor(self.normalization.offset))
        return self.normalization(y, training=training)

    def compute_output_shape(self, input_shape):
        return self.convolution.compute_output_shape(input_shape)

    def fold(self) -> None:
        """Makes batch normalization part of the convolution; any other normalization stays. Nothing is to be trained
        after that, nor saved: the kernel is then w', and the offset b'."""
        if self.is_folded or not isinstance(self.normalization, BatchNormalization):
            return
        factor, addend = self.normalization.as_linear()
        self.convolution.kernel.assign(self.convolution.kernel * factor)
        self.normalization.offset.assign(addend)
        self.is_folded = True


def fold_normalizations(model: keras.Model) -> None:
    """Folds every normalization that follows a convolution of a trained model, which then computes the same in fewer
    passes over memory."""
    for layer in model._flatten_layers():
        if isinstance(layer, NormalizedConvolution):
            layer.fold()
