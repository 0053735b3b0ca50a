"""Token and position embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from kerasllm.layers.projection import product, truncated_normal

Perturb = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class ActivePerturbations(threading.local):
    """The functions that change an embedding at this moment: of this thread, since each replica traces in its own."""

    def __init__(self) -> None:
        self.functions: tuple[Perturb, ...] = ()


class TokenEmbedding(keras.layers.Layer):
    r"""A vector per token, scaled by $\sqrt{D}$; the same table, unscaled, turns hidden vectors into logits.

    Args:
        vocabulary_size: V; token 0 is padding.
        hidden_dim: D.
        initializer_stddev: None, or the standard deviation that the table begins with; the vectors are then not scaled.

    References: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.4;
    [Press and Wolf, 2017](https://arxiv.org/abs/1608.05859) for the shared table.
    """

    def __init__(self, vocabulary_size: int, hidden_dim: int, initializer_stddev: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.is_scaled = initializer_stddev is None
        initializer = truncated_normal(initializer_stddev)
        if self.is_scaled:
            initializer = keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
        self.table = self.add_weight(name="table", shape=(vocabulary_size, hidden_dim), initializer=initializer)
        self.active = ActivePerturbations()
        self.built = True

    def call(self, token_ids: tf.Tensor) -> tf.Tensor:
        """token_ids: int32 [B, T] -> [B, T, D]."""
        vectors = tf.gather(tf.convert_to_tensor(self.table), token_ids)
        if self.is_scaled:
            vectors *= self.hidden_dim**0.5
        for perturb in self.active.functions:
            vectors = perturb(vectors, token_ids != 0)
        return vectors

    @contextmanager
    def perturbed(self, perturb: Perturb) -> Iterator[None]:
        """While it is open, each call gives `perturb(vectors [B, T, D], is_token [B, T])` in place of its vectors.

        One that is opened inside another changes what the other gave.
        """
        before = self.active.functions
        self.active.functions = (*before, perturb)
        try:
            yield
        finally:
            self.active.functions = before

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """x: [B, T, D] -> float32 [B, T, V]."""
        table = tf.cast(tf.convert_to_tensor(self.table), self.compute_dtype)
        x_rows = tf.cast(tf.reshape(x, [-1, self.hidden_dim]), self.compute_dtype)
        flat = tf.cast(product(x_rows, table, self.table.trainable), tf.float32)
        return tf.reshape(flat, [tf.shape(x)[0], -1, self.vocabulary_size])


class PositionEmbedding(keras.layers.Layer):
    r"""A vector per position: fixed sines and cosines, or a learned table.

    $$PE_{p, i} = \sin(p / 10000^{i / (D/2)}), \quad PE_{p, D/2 + i} = \cos(p / 10000^{i / (D/2)})$$

    Args:
        max_sequence_length: number of positions that there are.
        hidden_dim: D, even for "sinusoidal".
        kind: "sinusoidal" or "learned".
        initializer_stddev: of a learned table; $1 / \sqrt{D}$ if None.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 3.5 (there sines and cosines alternate;
    here they lie side by side, which is the same up to the order of the dimensions).
    """

    def __init__(
        self,
        max_sequence_length: int,
        hidden_dim: int,
        kind: str = "sinusoidal",
        initializer_stddev: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kind == "learned":
            initializer = truncated_normal(initializer_stddev)
            if initializer_stddev is None:
                initializer = keras.initializers.RandomNormal(stddev=hidden_dim**-0.5)
            self.table = self.add_weight(name="table", shape=(max_sequence_length, hidden_dim), initializer=initializer)
        else:
            self.table = sinusoidal_table(max_sequence_length, hidden_dim)
        self.built = True

    def call(self, positions: tf.Tensor) -> tf.Tensor:
        """positions: int32 [T] -> [T, D]."""
        return tf.cast(tf.gather(tf.convert_to_tensor(self.table), positions), self.compute_dtype)


class SegmentEmbedding(keras.layers.Layer):
    """A vector per kind of segment: the first and the second text of a pair, say.

    Args:
        num_segments: G.
        hidden_dim: D.
        initializer_stddev: of the table.

    Reference: [Devlin et al., 2018](https://arxiv.org/abs/1810.04805).
    """

    def __init__(self, num_segments: int, hidden_dim: int, initializer_stddev: float = 0.02, **kwargs):
        super().__init__(**kwargs)
        self.num_segments, self.hidden_dim = num_segments, hidden_dim
        initializer = truncated_normal(initializer_stddev)
        self.table = self.add_weight(name="table", shape=(num_segments, hidden_dim), initializer=initializer)
        self.built = True

    def call(self, segment_ids: tf.Tensor | None) -> tf.Tensor:
        """segment_ids: int32 [B, T] -> [B, T, D]; None, everything in segment 0 -> [D]."""
        table = tf.cast(tf.convert_to_tensor(self.table), self.compute_dtype)
        if segment_ids is None:
            return table[0]
        # A product: the gradient of a lookup would add all positions to the same few rows one after the other.
        chosen = tf.one_hot(tf.reshape(segment_ids, [-1]), self.num_segments, dtype=table.dtype)  # [B * T, G]
        vectors = product(chosen, tf.transpose(table), self.table.trainable)
        return tf.reshape(vectors, tf.concat([tf.shape(segment_ids), [self.hidden_dim]], axis=0))


def sinusoidal_table(max_sequence_length: int, hidden_dim: int) -> np.ndarray:
    """float32 [max_sequence_length, hidden_dim], the formula of `PositionEmbedding`."""
    frequencies = 10000.0 ** (-np.arange(hidden_dim // 2) / (hidden_dim / 2))
    angles = np.arange(max_sequence_length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")
