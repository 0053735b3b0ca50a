"""The position-wise feed-forward network of a Transformer block."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.activation import activation as activation_of
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.projection import Projection, truncated_normal


class FeedForward(keras.layers.Layer):
    r"""$\text{FFN}(x) = f(x W_1 + b_1) W_2 + b_2$, applied to every position alike.

    Args:
        hidden_dim: D, size of input and result.
        intermediate_dim: F, size between the two projections.
        activation: f, a name that `layers.activation` knows.
        dropout: rate applied to the intermediate activations.
        initializer_stddev: of the weights; None for Glorot's.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.3.
    """

    def __init__(
        self,
        hidden_dim: int,
        intermediate_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        initializer_stddev: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        expand_initializer, contract_initializer = (truncated_normal(initializer_stddev) for _ in range(2))
        self.expand = Projection(intermediate_dim, kernel_initializer=expand_initializer, name="expand")
        self.activation = activation_of(activation)
        self.dropout = Dropout(dropout, name="dropout")
        self.contract = Projection(hidden_dim, kernel_initializer=contract_initializer, name="contract")

    def build(self, input_shape):
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.expand.units))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        rows = tf.reshape(x, [-1, x.shape[-1]])
        rows = self.activation(self.expand(rows))  # [B * T, F]
        rows = self.dropout(rows, training=training)
        return tf.reshape(self.contract(rows), tf.shape(x))
