"""What turns the vectors of an encoder into logits: one layer for each kind of question."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.activation import activation as activation_of
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.embedding import TokenEmbedding
from kerasllm.layers.normalization import LayerNormalization
from kerasllm.layers.projection import Projection, truncated_normal


class MaskedLanguageHead(keras.layers.Layer):
    """Which token stands at some positions: dense, activation, normalization, then the token table and a bias.

    Args:
        vocabulary_size: V.
        hidden_dim: D.
        activation: a name that `layers.activation` knows.
        epsilon: of the normalization.
        initializer_stddev: of the weights.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805).
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        activation: str = "gelu",
        epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dense = Projection(hidden_dim, kernel_initializer=truncated_normal(initializer_stddev), name="dense")
        self.activation = activation_of(activation)
        self.normalization = LayerNormalization(epsilon, name="normalization")
        self.vocabulary_size = vocabulary_size
        self.build((None, None, hidden_dim))

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.normalization.build(input_shape)
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")

    def call(self, hidden: tf.Tensor, *, embedding: TokenEmbedding) -> tf.Tensor:
        """Logits of the vectors that it is given, which should be those that are asked for, and no others: logits are
        the most expensive part of a small model.

        Args:
            hidden: [B, P, D], such as from `Bert` with `wanted`.
            embedding: whose table, of shape [V, D], the logits are tied to.

        Returns:
            float32 [B, P, V].
        """
        logits = embedding.logits(self.normalization(self.activation(self.dense(hidden))))
        return logits + tf.cast(tf.convert_to_tensor(self.bias), logits.dtype)


class ClassificationHead(keras.layers.Layer):
    """Dropout, then a class: of a sequence from its pooled vector, or of each token from that of its own.

    Next sentence prediction is the one with two classes and without dropout: class 0, the second text follows the
    first; class 1, it does not.

    Args:
        num_classes: C.
        hidden_dim: D.
        dropout: rate applied to the vectors.
        initializer_stddev: of the weights.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805).
    """

    def __init__(
        self, num_classes: int, hidden_dim: int, dropout: float = 0.1, initializer_stddev: float = 0.02, **kwargs
    ):
        super().__init__(**kwargs)
        self.dropout = Dropout(dropout, name="dropout")
        self.dense = Projection(num_classes, kernel_initializer=truncated_normal(initializer_stddev), name="dense")
        self.build((None, hidden_dim))

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: [..., D] -> float32 logits [..., C]."""
        return tf.cast(self.dense(self.dropout(x, training=training)), tf.float32)


class SpanHead(keras.layers.Layer):
    """Where an answer begins and where it ends.

    Args:
        hidden_dim: D.
        initializer_stddev: of the weights.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805), section 4.2.
    """

    def __init__(self, hidden_dim: int, initializer_stddev: float = 0.02, **kwargs):
        super().__init__(**kwargs)
        self.dense = Projection(2, kernel_initializer=truncated_normal(initializer_stddev), name="dense")
        self.build((None, None, hidden_dim))

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, hidden: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """hidden: [B, T, D] -> float32 logits of the first and of the last token, [B, T] each."""
        start, end = tf.unstack(tf.cast(self.dense(hidden), tf.float32), num=2, axis=-1)
        return start, end
