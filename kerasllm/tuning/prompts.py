"""Prompts and prefixes: what is learnt stands in front of the input, or of what each attention sees."""

from __future__ import annotations

import keras
import tensorflow as tf


class Prompt(keras.layers.Layer):
    """Learnt vectors in front of the embedded tokens, for a model to attend to.

    They stand where the sum of the embeddings of token, position and segment does. So they hold places of their own,
    and the tokens keep the positions that the model was trained with; what comes out for the tokens is all that the
    model gives.

    Args:
        num_tokens: P.
        hidden_dim: D.

    Reference: [Lester et al., 2021](https://arxiv.org/abs/2104.08691).
    """

    def __init__(self, num_tokens: int, hidden_dim: int, **kwargs):
        super().__init__(**kwargs)
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.vectors = self.add_weight(name="vectors", shape=(num_tokens, hidden_dim), initializer=initializer)
        self.built = True

    def call(self, x: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """x: [B, T, D], mask: bool [B, 1, 1, T] -> [B, P + T, D] and bool [B, 1, 1, P + T]."""
        vectors = tf.cast(tf.convert_to_tensor(self.vectors), x.dtype)
        learnt = tf.tile(vectors[tf.newaxis], [tf.shape(x)[0], 1, 1])
        return tf.concat([learnt, x], axis=1), seen_in_front(mask, self.vectors.shape[0])


class Prefix(keras.layers.Layer):
    r"""Learnt keys and values in front of those of one self-attention, which every position sees.

    $$\text{softmax}\left(\frac{q\, [P_k; k]^\top}{\sqrt{K}}\right) [P_v; v]$$

    Args:
        num_tokens: P.
        num_heads: H.
        key_dim: K.

    References: [Li and Liang, 2021](https://arxiv.org/abs/2101.00190);
    [Liu et al., 2021](https://arxiv.org/abs/2110.07602), for encoders, without reparametrisation.
    """

    def __init__(self, num_tokens: int, num_heads: int, key_dim: int, **kwargs):
        super().__init__(**kwargs)
        shape, initializer = (num_heads, num_tokens, key_dim), keras.initializers.RandomNormal(stddev=0.02)
        self.keys = self.add_weight(name="keys", shape=shape, initializer=initializer)
        self.values = self.add_weight(name="values", shape=shape, initializer=initializer)
        self.built = True

    def put_in_front(
        self, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """key, value: [B, H, S, K], mask: bool [..., S] or None -> the same with P + S in place of S."""

        def longer(learnt: keras.Variable, x: tf.Tensor) -> tf.Tensor:
            learnt = tf.cast(tf.convert_to_tensor(learnt), x.dtype)
            return tf.concat([tf.tile(learnt[tf.newaxis], [tf.shape(x)[0], 1, 1, 1]), x], axis=2)

        mask = None if mask is None else seen_in_front(mask, self.keys.shape[1])
        return longer(self.keys, key), longer(self.values, value), mask

    def take(
        self, key: tf.Tensor, value: tf.Tensor, mask: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Begins with the keys and values [1, H, P, K] of a sequence, which are given back as they are."""
        self.keys.assign(key[0])
        self.values.assign(value[0])
        return key, value, mask


def seen_in_front(mask: tf.Tensor, count: int) -> tf.Tensor:
    """bool [B, H, T, S] -> [B, H, T, count + S]: what is put in front may be seen."""
    return tf.pad(mask, [[0, 0], [0, 0], [0, 0], [count, 0]], constant_values=True)
