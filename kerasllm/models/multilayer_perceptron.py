"""Layer after layer of weighted sums: softmax regression without a hidden layer, a small network with some."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from kerasllm.layers.dropout import Dropout


class MultilayerPerceptron(keras.Model):
    r"""Tells what a picture shows, from its numbers in a row.

    $$h_0 = x, \quad h_i = f(W_i h_{i-1} + b_i), \quad z = W h_n + b$$

    With `num_layers` 0 it is softmax regression, a linear model, whose loss is convex; its weights begin with zeros, so
    that at first all classes are as likely and every seed starts at the same point. Hidden layers begin with the
    variance 2 / fan-in of He et al. (2015), the output layer after them as Glorot and Bengio (2010) say.

    Args:
        height, width, channels: H, W and D of the pictures.
        num_classes: C.
        num_layers: n, hidden layers.
        hidden_dim: D, width of each.
        activation: f.
        dropout: share of the values of each hidden layer that is set to 0 in training.

    Reference: [Rumelhart et al., 1986](https://doi.org/10.1038/323533a0).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        num_layers: int = 1,
        hidden_dim: int = 64,
        activation: str = "relu",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden = [
            keras.layers.Dense(hidden_dim, activation, kernel_initializer="he_normal", name=f"hidden_{index}")
            for index in range(num_layers)
        ]
        self.dropouts = [Dropout(dropout, name=f"dropout_{index}") for index in range(num_layers)]
        start = "glorot_uniform" if num_layers else "zeros"
        self.output_layer = keras.layers.Dense(num_classes, kernel_initializer=start, name="output")
        self.call(tf.zeros([1, height, width, channels]))  # now, so that weights can be loaded and counted
        self.built = True  # and not by a call of the model itself, after which it could get no further layer

    def call(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> logits [B, C]."""
        return self.output_layer(self.embed(pictures, training=training))

    def embed(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, D], the last hidden layer."""
        values = tf.reshape(pictures, [-1, math.prod(pictures.shape[1:])])
        for layer, dropout in zip(self.hidden, self.dropouts, strict=True):
            values = dropout(layer(values), training=training)  # [B, D]
        return values
