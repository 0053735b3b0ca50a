"""A linear-chain conditional random field: one label for each of several things in a row, chosen together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

IMPOSSIBLE = -1e9
"""What is added to the score of a label that may not be; exp of it is 0."""


class Scores(NamedTuple):
    """What a path gains besides its emissions: of label j after label i [C, C], of the first [C] and the last [C]."""

    transitions: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor


class LinearChainCrf(keras.layers.Layer):
    r"""$$p(y | x) = \frac{1}{Z} \exp \Big( a_{y_1} + \sum_{t=1}^{M} x_{t, y_t} + \sum_{t=2}^{M} A_{y_{t-1}, y_t}
    + b_{y_M} \Big)$$

    with emissions x, and learnt scores of transitions A, of starts a and of ends b, all 0 at first. All sums are in the
    logarithm, and in float32. What is forbidden counts in decoding and in marginals, not in the likelihood.

    Args:
        allowed: whether the label of a column may follow that of a row, bool [C, C].
        allowed_starts: whether each label may be the first, bool [C].

    Reference: [Lafferty et al., 2001](https://repository.upenn.edu/cis_papers/159); for sentences
    [Lample et al., 2016](https://arxiv.org/abs/1603.01360).
    """

    def __init__(self, allowed: npt.ArrayLike, allowed_starts: npt.ArrayLike, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.transition_penalties = np.where(allowed, 0, IMPOSSIBLE).astype("float32")
        self.start_penalties = np.where(allowed_starts, 0, IMPOSSIBLE).astype("float32")
        self.build(None)

    def build(self, input_shape):
        num_classes = len(self.start_penalties)
        self.transitions = self.add_weight(name="transitions", shape=(num_classes, num_classes), initializer="zeros")
        self.starts = self.add_weight(name="starts", shape=(num_classes,), initializer="zeros")
        self.ends = self.add_weight(name="ends", shape=(num_classes,), initializer="zeros")

    def log_likelihood(self, emissions: tf.Tensor, labels: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Of the right labels.

        Args:
            emissions: float [B, M, C], M 1 or more.
            labels: int32 [B, M], from 0; what stands after the length does not count.
            lengths: int32 [B].

        Returns:
            float32 [B], in nats; 0 where the length is 0.
        """
        emissions = tf.cast(emissions, tf.float32)
        mask = tf.sequence_mask(lengths, tf.shape(emissions)[1], dtype=tf.float32)  # [B, M]
        scores = Scores(*map(tf.convert_to_tensor, (self.transitions, self.starts, self.ends)))
        emitted = tf.reduce_sum(mask * tf.gather(emissions, labels, batch_dims=2), axis=1)
        pairs = tf.stack([labels[:, :-1], labels[:, 1:]], axis=-1)  # [B, M - 1, 2]
        passed = tf.reduce_sum(mask[:, 1:] * tf.gather_nd(scores.transitions, pairs), axis=1)
        last = tf.gather(labels, tf.maximum(lengths - 1, 0), batch_dims=1)  # [B]
        score = tf.gather(scores.starts, labels[:, 0]) + emitted + passed + tf.gather(scores.ends, last)
        alphas = forward(emissions, lengths, scores, tf.reduce_logsumexp)
        log_partition = tf.reduce_logsumexp(alphas[-1] + scores.ends, axis=-1)
        return tf.where(lengths > 0, score - log_partition, 0.0)

    def decode(self, emissions: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """The likeliest labels of those that are allowed (Viterbi): int32 [B, M], 0 after the length.

        The arguments are as for `log_likelihood`.
        """
        emissions, scores = tf.cast(emissions, tf.float32), self._allowed_scores()
        alphas = forward(emissions, lengths, scores, tf.reduce_max)
        last = tf.argmax(alphas[-1] + scores.ends, axis=-1, output_type=tf.int32)  # [B]

        def step(label: tf.Tensor, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            alpha, goes_on = inputs
            into_label = tf.transpose(tf.gather(scores.transitions, label, axis=1))  # [B, C]
            return tf.where(goes_on, tf.argmax(alpha + into_label, axis=-1, output_type=tf.int32), label)

        _, goes_on = following(emissions, lengths)
        labels = tf.scan(step, (alphas, goes_on), last, reverse=True)  # [M, B]
        return tf.where(tf.sequence_mask(lengths, tf.shape(emissions)[1]), tf.transpose(labels), 0)

    def marginals(self, emissions: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """How probable each label is at each place, over all that is allowed: float32 [B, M, C].

        The arguments are as for `log_likelihood`; what stands after the length means nothing.
        """
        emissions, scores = tf.cast(emissions, tf.float32), self._allowed_scores()
        alphas = forward(emissions, lengths, scores, tf.reduce_logsumexp)
        end = tf.zeros_like(alphas[-1]) + scores.ends  # [B, C]

        def step(beta: tf.Tensor, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            emission, goes_on = inputs
            before = tf.reduce_logsumexp(scores.transitions + (emission + beta)[:, tf.newaxis], axis=2)
            return tf.where(goes_on[:, tf.newaxis], before, beta)

        betas = tf.scan(step, following(emissions, lengths), end, reverse=True)  # [M, B, C]
        return tf.transpose(tf.nn.softmax(alphas + betas), [1, 0, 2])

    def _allowed_scores(self) -> Scores:
        """With what is forbidden left out."""
        transitions, starts, ends = map(tf.convert_to_tensor, (self.transitions, self.starts, self.ends))
        return Scores(transitions + self.transition_penalties, starts + self.start_penalties, ends)


def following(emissions: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What comes after each place: emissions float32 [M, B, C], and whether it is inside, bool [M, B]; after the last
    place nothing comes, so that there is always something to go through."""
    after = tf.pad(emissions[:, 1:], [[0, 0], [0, 1], [0, 0]])
    return tf.transpose(after, [1, 0, 2]), tf.transpose(tf.sequence_mask(lengths - 1, tf.shape(emissions)[1]))


def forward(emissions: tf.Tensor, lengths: tf.Tensor, scores: Scores, reduce: Callable[..., tf.Tensor]) -> tf.Tensor:
    """For each place and label the sum, or the best, of all ways that lead there: float32 [M, B, C].

    After the length it stays what it was.

    Args:
        emissions: float32 [B, M, C].
        lengths: int32 [B].
        reduce: `tf.reduce_logsumexp` or `tf.reduce_max`.
    """

    def step(alpha: tf.Tensor, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        emission, goes_on = inputs
        after = reduce(alpha[:, :, tf.newaxis] + scores.transitions, axis=1) + emission
        return tf.where(goes_on[:, tf.newaxis], after, alpha)

    first = scores.starts + emissions[:, 0]
    return tf.concat([first[tf.newaxis], tf.scan(step, following(emissions, lengths), first)[:-1]], axis=0)
