"""Spans of tokens, from logits of their first and of their last token."""

from __future__ import annotations

import tensorflow as tf

IMPOSSIBLE = -1e9
"""The logit of a position that cannot be."""


def best_spans(
    log_probabilities: tf.Tensor, allowed: tf.Tensor, max_length: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    r"""The likeliest span of each sequence.

    $$\arg\max_{i \le j < i + n} \log p_i + \log q_j$$

    Args:
        log_probabilities: float32 [B, 2, T], p of the first token and q of the last one.
        allowed: bool [B, T], where a span may begin and end.
        max_length: n, in tokens.

    Returns:
        float32 [B], the sum, which is below `IMPOSSIBLE` / 2 where no span is allowed; and int32 [B] twice, i and j. Of
        equally likely spans the one that begins first, and then the shorter.
    """
    first, last = tf.unstack(tf.where(allowed[:, tf.newaxis], log_probabilities, IMPOSSIBLE), axis=1)  # [B, T]
    length = tf.shape(first)[1]
    last = tf.pad(last, [[0, 0], [0, max_length - 1]], constant_values=IMPOSSIBLE)
    places = tf.range(length)[:, tf.newaxis] + tf.range(max_length)  # [T, n]
    scores = first[:, :, tf.newaxis] + tf.gather(last, places, axis=1)  # [B, T, n]
    scores = tf.reshape(scores, [-1, length * max_length])
    chosen = tf.argmax(scores, axis=1, output_type=tf.int32)
    begin = chosen // max_length
    return tf.reduce_max(scores, axis=1), begin, begin + chosen % max_length
