"""A first layer for pictures that is not trained: it makes the numbers of a patch independent of each other."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

EPSILON = 5e-4
"""Added to the variances, so that directions in which pictures hardly vary are not made of noise."""


class Whitening(keras.layers.Layer):
    r"""Convolution with the directions in which the patches of pictures vary, and with their opposites.

    Of patches x in R^{k k D}, with their second moments $E[x x^\top] = \sum_i \lambda_i v_i v_i^\top$, it gives
    $\pm v_i^\top x / \sqrt{\lambda_i + \epsilon}$, so that neighbouring pixels, which are much alike, do not say
    the same over and over. The greatest variance comes first. The bias is trained, the kernel is not.

    Args:
        kernel_size: k.
        padding: "same" puts zeros around the picture, "valid" sees whole patches only; pictures narrower than k get
            zeros in any case.

    It computes in float32 whatever the precision around it: what is rounded off a pixel is as much as directions of
    little variance have.

    Reference: [Jordan, 2024](https://arxiv.org/abs/2404.00498), section 3.2, after
    [Page, 2018](https://myrtle.ai/learn/how-to-train-your-resnet/).
    """

    def __init__(self, kernel_size: int = 2, padding: str = "same", **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.kernel_size, self.padding = kernel_size, padding

    def build(self, input_shape):
        filters = 2 * self.kernel_size**2 * input_shape[-1]
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="he_normal", trainable=False)
        self.bias = self.add_weight(name="bias", shape=(filters,), initializer="zeros")

    def learn(self, pictures: np.ndarray) -> None:
        """Sets the kernel.

        Args:
            pictures: [N, H, W, D], as the layer will see them.
        """
        size = (self.kernel_size, self.kernel_size)
        patches = np.lib.stride_tricks.sliding_window_view(pictures, size, axis=(1, 2))  # [N, H', W', D, k, k]
        patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, np.prod(size) * pictures.shape[-1])
        variances, directions = np.linalg.eigh(patches.T.astype(np.float64) @ patches / len(patches))  # ascending
        kernel = (directions / np.sqrt(variances + EPSILON))[:, ::-1].reshape(*size, pictures.shape[-1], -1)
        self.kernel.assign(np.concatenate([kernel, -kernel], axis=-1))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, H, W, D] -> [B, H, W, 2 k k D], or with k - 1 fewer rows and columns."""
        padding = self.padding.upper() if min(x.shape[1:3]) >= self.kernel_size else "SAME"
        y = tf.nn.conv2d(x, tf.convert_to_tensor(self.kernel), 1, padding)
        return tf.nn.bias_add(y, tf.convert_to_tensor(self.bias))
