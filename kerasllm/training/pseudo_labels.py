"""Learning from examples without a label, by what the model itself takes them for where it is sure."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from kerasllm.training.adversarial import Losses


class PseudoLabels:
    r"""The loss of labelled examples, and of others with the label that the model gives them.

    $$\ell_u = w\, [\max_c p_c \ge \tau]\, \text{CE}(z, \arg\max_c p_c)$$

    with the probabilities p that the model has for an example as it answers, without dropout, and the logits z of
    training. Label 0 says that an example has none. As such an example weighs nothing until the model is sure of it, a
    model learns from the labelled ones first.

    Args:
        task: its `forward` gives logits [B, 1, C], and its `loss` counts nothing for label 0.
        label_smoothing: in training, in [0, 1).
        threshold: tau.
        weight: w, of an example without a label beside one with a label.

    Reference: Lee, 2013, Pseudo-Label: the simple and efficient semi-supervised learning method; the threshold:
    [Sohn et al., 2020](https://arxiv.org/abs/2001.07685).
    """

    def __init__(self, task: Any, label_smoothing: float = 0.0, threshold: float = 0.95, weight: float = 1.0):
        self.task, self.label_smoothing = task, label_smoothing
        self.threshold, self.weight = threshold, weight

    def __call__(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> Losses:
        logits = self.task.forward(model, batch, training=training)
        if not training:
            return self.task.loss(logits, batch, 0.0)
        labels = batch["labels"]  # [B, 1]
        probabilities = tf.nn.softmax(tf.stop_gradient(self.task.forward(model, batch, training=False))[:, 0])
        is_sure = tf.reduce_max(probabilities, axis=-1, keepdims=True) >= self.threshold
        given = tf.argmax(probabilities, axis=-1, output_type=labels.dtype)[:, tf.newaxis] + 1
        chosen = tf.where(labels > 0, labels, tf.where(is_sure, given, 0))
        losses, weights = self.task.loss(logits, {**batch, "labels": chosen}, self.label_smoothing)
        return losses, weights * tf.where(labels > 0, 1.0, self.weight)
