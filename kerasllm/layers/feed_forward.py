"""The position-wise feed-forward network of a Transformer block."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.dropout import Dropout
from kerasllm.layers.projection import Projection


class FeedForward(keras.layers.Layer):
    r"""$\text{FFN}(x) = f(x W_1 + b_1) W_2 + b_2$, applied to every position alike.

    Args:
        hidden_dim: D, size of input and result.
        intermediate_dim: F, size between the two projections.
        activation: Keras activation f, by name.
        dropout: rate applied to the intermediate activations.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.3.
    """

    def __init__(
        self, hidden_dim: int, intermediate_dim: int, activation: str = "relu", dropout: float = 0.0, **kwargs
    ):
        super().__init__(**kwargs)
        self.expand = Projection(intermediate_dim, name="expand")
        self.activation = keras.activations.get(activation)
        self.dropout = Dropout(dropout, name="dropout")
        self.contract = Projection(hidden_dim, name="contract")

    def build(self, input_shape):
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.expand.units))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = self.activation(self.expand(x))  # [B, T, F]
        x = self.dropout(x, training=training)
        return self.contract(x)  # [B, T, D]
