"""Texts that do not fit into a model lose their ends."""

from collections.abc import Sequence

import tensorflow as tf


def cut_to_room(texts: Sequence[tf.RaggedTensor], room: int) -> tuple[list[tf.RaggedTensor], tf.Tensor]:
    """One text or two, of as many tokens together as there is room for.

    A pair that is too long loses tokens at the end of the longer text, until both are as long.

    Args:
        texts: int32 [B, None] each.
        room: tokens of a row, at least one for each text.

    Returns:
        The texts, and how many tokens each row lost, int32 [B].
    """
    lengths = [each.row_lengths() for each in texts]
    if len(texts) == 1:
        kept = [tf.minimum(lengths[0], room)]
    else:
        first, second = lengths
        kept = [
            tf.minimum(first, tf.maximum(room - second, room - room // 2)),
            tf.minimum(second, tf.maximum(room - first, room // 2)),
        ]
    cut = tf.cast(tf.add_n(lengths) - tf.add_n(kept), tf.int32)
    return [keep_first(each, number) for each, number in zip(texts, kept, strict=True)], cut


def keep_first(rows: tf.RaggedTensor, numbers: tf.Tensor) -> tf.RaggedTensor:
    """The first numbers[b] values of each row b."""
    starts = rows.row_starts()
    places = tf.ragged.range(starts, starts + numbers).flat_values
    return tf.RaggedTensor.from_row_lengths(tf.gather(rows.flat_values, places), numbers, validate=False)
