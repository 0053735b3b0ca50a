"""Losses per position, before any sum: the trainer weighs and normalises them over the whole global batch."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    r"""Cross-entropy of each position against smoothed labels.

    $$\ell = -\sum_v q_v \log p_v, \quad q_v = (1 - \epsilon) [v = y] + \epsilon / V$$

    Written as $-\log p_y + \epsilon\, (z_y - \bar z)$ with the logits z, it needs no table of labels [B, T, V].

    Args:
        logits: float [B, T, V].
        labels: int [B, T].
        label_smoothing: epsilon in [0, 1).

    Returns:
        float32 [B, T], in nats.

    Reference: [Szegedy et al., 2016](https://arxiv.org/abs/1512.00567), section 7.
    """
    vocabulary_size = logits.shape[-1]
    flat_labels = tf.reshape(labels, [-1])

    @tf.custom_gradient
    def losses(flat_logits):
        loss, gradient = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=flat_logits, labels=flat_labels)
        at_label = tf.stack([tf.range(tf.shape(flat_labels)[0]), tf.cast(flat_labels, tf.int32)], axis=1)
        if label_smoothing:
            excess = tf.gather_nd(flat_logits, at_label) - tf.reduce_mean(flat_logits, axis=-1)
            loss += label_smoothing * excess

        def backward(upstream):
            if not label_smoothing:
                return gradient * upstream[:, tf.newaxis]
            smoothed = (gradient - label_smoothing / vocabulary_size) * upstream[:, tf.newaxis]
            return tf.tensor_scatter_nd_add(smoothed, at_label, label_smoothing * upstream)

        return loss, backward

    return tf.reshape(losses(tf.reshape(logits, [-1, vocabulary_size])), tf.shape(labels))
