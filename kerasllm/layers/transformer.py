"""The block of a Transformer, with the normalization before or after each part."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from kerasllm.layers.attention import CrossAttention, SelfAttention
from kerasllm.layers.dropout import Dropout
from kerasllm.layers.feed_forward import FeedForward
from kerasllm.layers.normalization import LayerNormalization


class Residual(keras.layers.Layer):
    r"""Adds a part of a block to its input.

    - pre-norm: $x + \text{dropout}(f(\text{norm}(x)))$
    - post-norm: $\text{norm}(x + \text{dropout}(f(x)))$

    References: post-norm [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762); pre-norm
    [Xiong et al., 2020](https://arxiv.org/abs/2002.04745).
    """

    def __init__(self, normalization: str, dropout: float, epsilon: float = 1e-6, **kwargs):
        super().__init__(**kwargs)
        self.pre_norm = normalization == "pre"
        self.normalization = LayerNormalization(epsilon, name="normalization")
        self.dropout = Dropout(dropout, name="dropout")

    def build(self, input_shape):
        self.normalization.build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        part: Callable[[tf.Tensor], tf.Tensor],
        wanted: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """Adds `part` of x to x.

        Args:
            x: [B, T, D].
            part: function [B, T, D] -> [B, T, D]; or [B, P, D], for the places that are wanted.
            wanted: int32 [B, P], or None for all places.

        Returns:
            [B, T, D], or [B, P, D].
        """
        kept = x if wanted is None else tf.gather(x, wanted, batch_dims=1)
        if self.pre_norm:
            return kept + self.dropout(part(self.normalization(x)), training=training)
        return self.normalization(kept + self.dropout(part(x), training=training))


class TransformerBlock(keras.layers.Layer):
    """Self-attention, attention to a context if there is one, then feed-forward.

    Without a context it is a block of an encoder or, with a causal mask, of a language model; with one it is a block
    of a decoder.

    Args:
        num_heads: H.
        hidden_dim: D.
        intermediate_dim: F.
        activation: of the feed-forward network, a name that `layers.activation` knows.
        dropout: rate after each part.
        attention_dropout: rate of the attention probabilities.
        activation_dropout: rate inside the feed-forward network.
        normalization: "pre" or "post".
        has_context: whether it attends to a context.
        epsilon: of the normalizations.
        initializer_stddev: of the weights of self-attention and feed-forward network; None for Glorot's.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        normalization: str = "pre",
        has_context: bool = False,
        epsilon: float = 1e-6,
        initializer_stddev: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.self_attention = SelfAttention(
            num_heads, hidden_dim, attention_dropout, initializer_stddev, name="self_attention"
        )
        self.self_attention_residual = Residual(normalization, dropout, epsilon, name="self_attention_residual")
        self.cross_attention = None
        if has_context:
            self.cross_attention = CrossAttention(num_heads, hidden_dim, attention_dropout, name="cross_attention")
            self.cross_attention_residual = Residual(normalization, dropout, epsilon, name="cross_attention_residual")
        self.feed_forward = FeedForward(
            hidden_dim, intermediate_dim, activation, activation_dropout, initializer_stddev, name="feed_forward"
        )
        self.feed_forward_residual = Residual(normalization, dropout, epsilon, name="feed_forward_residual")

    def build(self, input_shape):
        parts = [self.self_attention, self.self_attention_residual, self.feed_forward, self.feed_forward_residual]
        if self.cross_attention is not None:
            parts += [self.cross_attention, self.cross_attention_residual]
        for part in parts:
            part.build(input_shape)

    def call(
        self,
        x,
        attention_mask,
        context=None,
        context_mask=None,
        cache=None,
        slot=None,
        wanted=None,
        training: bool = False,
    ):
        """One block.

        Args:
            x: [B, T, D].
            attention_mask: what each token sees of x, bool that broadcasts to [B, H, T, T] ([B, H, T, slots] with a
                cache).
            context: keys and values [B, H, S, K] to attend to, from `cross_attention.project_context`.
            context_mask: what each token sees of the context, bool that broadcasts to [B, H, T, S].
            cache, slot, wanted: as in `SelfAttention`.

        Returns:
            [B, T, D], or [B, P, D] of the places that are wanted, and the cache with x in it (None without a cache).
        """

        def attend_to_self(y):
            nonlocal cache
            y, cache = self.self_attention(
                y, attention_mask=attention_mask, cache=cache, slot=slot, wanted=wanted, training=training
            )
            return y

        def attend_to_context(y):
            return self.cross_attention(y, context, attention_mask=context_mask, training=training)

        x = self.self_attention_residual(x, part=attend_to_self, wanted=wanted, training=training)
        if self.cross_attention is not None:
            x = self.cross_attention_residual(x, part=attend_to_context, training=training)
        x = self.feed_forward_residual(x, part=lambda y: self.feed_forward(y, training=training), training=training)
        return x, cache
