"""Pairs of a short and a long text as sequences that fit into a model: the long one goes in windows that overlap."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from kerasllm.data.tokenizers import WordpieceTokenizer

MIN_LENGTH = 5
"""The start, a token of each text, and an end after each."""


class Windows(NamedTuple):
    """N windows of B pairs, those of a pair one after the other, and at least one of each."""

    token_ids: tf.RaggedTensor
    """int32 [N, None]: START short END window END."""
    segment_ids: tf.RaggedTensor
    """int32 [N, None]: 1 from the window on."""
    pairs: tf.Tensor
    """int32 [N]: the pair of each window."""
    positions: tf.Tensor
    """int32 [N]: where the window's first token stands in its sequence."""
    first_tokens: tf.Tensor
    """int32 [N]: which of the long text's tokens that is."""
    lengths: tf.Tensor
    """int32 [N]: tokens of the long text."""
    num_cut: tf.Tensor
    """int32 [B]: tokens of the short text that were cut off."""
    begins: tf.RaggedTensor
    """int32 [B, None]: the character of the long text with which each of its tokens begins."""
    ends: tf.RaggedTensor
    """int32 [B, None]: the one after its last."""

    def sequences(self, start: tf.Tensor, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Some windows, padded with 0 to the longest: `token_ids` and `segment_ids` int32 [n, T], and whether a token
        is one of the long text, bool [n, T]."""
        batch = {name: getattr(self, name)[start:stop].to_tensor() for name in ("token_ids", "segment_ids")}
        places = tf.range(tf.shape(batch["token_ids"])[1]) - self.positions[start:stop, tf.newaxis]  # [n, T]
        return batch, (places >= 0) & (places < self.lengths[start:stop, tf.newaxis])


def build_windows(
    tokenizer: WordpieceTokenizer, short: tf.Tensor, long: tf.Tensor, max_length: int, stride: int
) -> Windows:
    """Tokenizes pairs, as graph operations.

    The short text keeps at most half of the places, and the windows take what it leaves. One begins `stride` tokens
    after the other, or half a window if that is less, so that what is no longer than half a window is whole in one.

    Args:
        short, long: string [B].
        max_length: tokens of a sequence, special ones included, at least `MIN_LENGTH`.
        stride: tokens.
    """
    room = max_length - 3
    asked = tokenizer.tokenize(short)
    num_cut = tf.maximum(tf.cast(asked.row_lengths(), tf.int32) - room // 2, 0)
    asked = asked[:, : room // 2]
    tokens, begins, ends = tokenizer.tokenize_with_offsets(long)
    asked_lengths, num_tokens = (tf.cast(each.row_lengths(), tf.int32) for each in (asked, tokens))  # [B]
    widths = room - asked_lengths
    strides = tf.minimum(stride, (widths + 1) // 2)
    num_windows = 1 + tf.maximum(-(-(num_tokens - widths) // strides), 0)
    pairs = tf.repeat(tf.range(tf.size(num_windows)), num_windows)  # [N]
    first_tokens = tf.ragged.range(num_windows).flat_values * tf.gather(strides, pairs)
    stops = tf.minimum(first_tokens + tf.gather(widths, pairs), tf.gather(num_tokens, pairs))
    row_starts = tf.gather(tf.cast(tokens.row_starts(), tf.int32), pairs)
    places = tf.ragged.range(row_starts + first_tokens, row_starts + stops)  # [N, None]
    window = places.with_flat_values(tf.gather(tokens.flat_values, places.flat_values))
    start, end = (tf.fill([tf.size(pairs), 1], each) for each in (tokenizer.start_id, tokenizer.end_id))
    parts = tf.concat([start, tf.gather(asked, pairs), end], axis=1), tf.concat([window, end], axis=1)
    return Windows(
        tf.concat(parts, axis=1),
        tf.concat([tf.zeros_like(parts[0]), tf.ones_like(parts[1])], axis=1),
        pairs,
        tf.gather(asked_lengths, pairs) + 2,
        first_tokens,
        stops - first_tokens,
        num_cut,
        begins,
        ends,
    )
