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
    flat_labels = tf.cast(tf.reshape(labels, [-1]), tf.int32)

    @tf.custom_gradient
    def losses(flat_logits):
        at_label = tf.stack([tf.range(tf.shape(flat_labels)[0]), flat_labels], axis=1)
        probabilities = tf.nn.softmax(flat_logits)
        label_logits = tf.gather_nd(flat_logits, at_label)
        log_greatest = tf.math.log(tf.reduce_max(probabilities, axis=-1))  # 1/V or more: never the log of 0
        loss = tf.reduce_max(flat_logits, axis=-1) - log_greatest - label_logits
        if label_smoothing:
            loss += label_smoothing * (label_logits - tf.reduce_mean(flat_logits, axis=-1))

        def backward(upstream):
            gradient = probabilities - label_smoothing / vocabulary_size if label_smoothing else probabilities
            gradient *= upstream[:, tf.newaxis]
            return tf.tensor_scatter_nd_sub(gradient, at_label, (1.0 - label_smoothing) * upstream)

        return loss, backward

    return tf.reshape(losses(tf.reshape(logits, [-1, vocabulary_size])), tf.shape(labels))
