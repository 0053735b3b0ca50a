"""BERT: a Transformer encoder that reads a text, or a pair of texts, in both directions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from kerasllm.layers.attention import padding_attention_mask
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.embedding import PositionEmbedding, SegmentEmbedding, TokenEmbedding
from kerasllm.layers.normalization import LayerNormalization
from kerasllm.layers.projection import Projection, truncated_normal
from kerasllm.layers.transformer import TransformerBlock
from kerasllm.models.settings import BertSettings


class ActiveRecords(threading.local):
    """The lists that hidden vectors are put into at this moment: of this thread, as each replica traces in its own."""

    def __init__(self) -> None:
        self.lists: tuple[list[tuple[tf.Tensor, tf.Tensor]], ...] = ()


class Bert(keras.Model):
    """Gives a vector for each token that has seen all others; `layers/heads.py` makes answers of them.

    Args:
        vocabulary_size: V; token 0 is padding.
        num_layers: blocks.
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F.
        max_sequence_length: number of positions.
        num_segments: kinds of segments that a sequence may consist of.
        activation: of the feed-forward networks, a name that `layers.activation` knows.
        dropout: rate after the embeddings and after each part of a block.
        attention_dropout: rate of the attention probabilities.
        epsilon: of the normalizations.
        initializer_stddev: of the weights at first.

    Attributes:
        prompt: None, or the function of vectors [B, T, D] and their mask that puts learnt ones in front of them.

    Raises:
        ValueError: `num_heads` does not divide `hidden_dim`.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805).
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 768,
        intermediate_dim: int = 3072,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.max_sequence_length = max_sequence_length
        self.settings = BertSettings(
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
            num_segments=num_segments,
            activation=activation,
            dropout=dropout,
            attention_dropout=attention_dropout,
            epsilon=epsilon,
            initializer_stddev=initializer_stddev,
        )
        stddev = initializer_stddev
        self.embedding = TokenEmbedding(vocabulary_size, hidden_dim, stddev, name="embedding")
        self.positions = PositionEmbedding(max_sequence_length, hidden_dim, "learned", stddev, name="positions")
        self.segments = SegmentEmbedding(num_segments, hidden_dim, stddev, name="segments")
        self.embedding_norm = LayerNormalization(epsilon, name="embedding_norm")
        self.embedding_dropout = Dropout(dropout, name="embedding_dropout")
        self.blocks = [
            TransformerBlock(
                num_heads,
                hidden_dim,
                intermediate_dim,
                activation,
                dropout,
                attention_dropout,
                normalization="post",
                epsilon=epsilon,
                initializer_stddev=stddev,
                name=f"layer_{index}",
            )
            for index in range(num_layers)
        ]
        self.pooler = Projection(hidden_dim, kernel_initializer=truncated_normal(stddev), name="pooler")
        self.prompt = None
        for layer in (self.embedding_norm, *self.blocks, self.pooler):
            layer.build((None, None, hidden_dim))  # now, so that weights can be loaded and counted before any call
        self.active_records = ActiveRecords()
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False, wanted: tf.Tensor | None = None) -> tf.Tensor:
        """A vector for each token, or for those that are wanted.

        Args:
            inputs: `token_ids` int32 [B, T], 0 at padding, and if there are several segments `segment_ids` int32
                [B, T].
            wanted: int32 [B, P], places in [0, T): the last block computes no other vectors. None wants all.

        Returns:
            [B, T, D], or [B, P, D]; what stands at padding means nothing.
        """
        token_ids = inputs["token_ids"]
        is_token = token_ids != 0
        mask = padding_attention_mask(is_token)
        x = self.embedding(token_ids) + (
            self.positions(tf.range(tf.shape(token_ids)[1])) + self.segments(inputs.get("segment_ids"))
        )  # [B, T, D]
        if self.prompt is not None:
            x, mask = self.prompt(x, mask)  # [B, P + T, D]
        x = self.embedding_dropout(self.embedding_norm(x), training=training)
        start = tf.shape(x)[1] - tf.shape(token_ids)[1]  # of the tokens, after a prompt
        places = None if wanted is None else wanted + start
        states = [x]
        for block in self.blocks[:-1]:
            x, _ = block(x, attention_mask=mask, training=training)
            states.append(x)
        if self.active_records.lists:  # of all tokens
            x, _ = self.blocks[-1](x, attention_mask=mask, training=training)
            for record in self.active_records.lists:
                record.extend((state[:, start:], is_token) for state in (*states, x))
            return x[:, start:] if wanted is None else tf.gather(x, places, batch_dims=1)
        x, _ = self.blocks[-1](x, attention_mask=mask, wanted=places, training=training)
        return x[:, start:] if wanted is None and self.prompt is not None else x

    @contextmanager
    def recorded_hidden(self) -> Iterator[list[tuple[tf.Tensor, tf.Tensor]]]:
        """While it is open, each call adds to the list its hidden vectors: for the embeddings and then for each block
        the vectors [B, T, D], and whether there is a token, bool [B, T]."""
        before, record = self.active_records.lists, []
        self.active_records.lists = (*before, record)
        try:
            yield record
        finally:
            self.active_records.lists = before

    def pooled(self, hidden: tf.Tensor) -> tf.Tensor:
        """hidden: [B, T, D], from `call` -> [B, D], one vector for the sequence, made of that of its first token."""
        return tf.tanh(self.pooler(hidden[:, 0]))

    def summary_of(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """`pooled` of a sequence alone, [B, D], at less cost than from the vectors of all tokens."""
        first = tf.zeros([tf.shape(inputs["token_ids"])[0], 1], tf.int32)
        return self.pooled(self(inputs, training=training, wanted=first))
