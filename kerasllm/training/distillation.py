"""Distillation: a student learns to answer as its teacher does, by any other objective; in evaluation it is the task.

The teacher is asked about each example by itself, so what it says is the same however a batch is split.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kerasllm.training.adversarial import Losses, Objective

Hidden = Sequence[tuple[tf.Tensor, tf.Tensor]]
"""For each layer, the embeddings first: vectors [B, T, D] and whether there is a token, bool [B, T]."""


@dataclass(frozen=True)
class Teacher:
    """A trained model that is asked, and not changed.

    Args:
        ask: batch -> its logits, without dropout, and its hidden vectors (none if they cannot be had).
        projection: from the width of the student's hidden vectors to that of the teacher's; learnt with the student.
            None where the widths are the same, or hidden vectors are not compared.
    """

    ask: Callable[[Any], tuple[tf.Tensor, Hidden]]
    projection: keras.layers.Layer | None = None


def soft_loss(logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float) -> tf.Tensor:
    r"""How far the answers of a student are from those of its teacher, both softened by a temperature $\tau$.

    $$\tau^2\, KL(\text{softmax}(z_T / \tau) \,\|\, \text{softmax}(z / \tau))$$

    That is the cross-entropy of the paper less a constant, so it is 0 where both agree; with $\tau^2$ its gradient is
    about as large at every temperature. Where there is a single output, a number, it is the squared difference.

    Args:
        logits: of the student, float [..., C].
        teacher_logits: of the same shape; no gradient flows to them.
        temperature: tau.

    Returns:
        float32 [...], in nats.

    Reference: [Hinton et al., 2015](https://arxiv.org/abs/1503.02531), section 2.
    """
    ours, theirs = (tf.cast(each, tf.float32) for each in (logits, tf.stop_gradient(teacher_logits)))
    if logits.shape[-1] == 1:
        return tf.square(ours - theirs)[..., 0]
    log_p, log_q = tf.nn.log_softmax(theirs / temperature), tf.nn.log_softmax(ours / temperature)
    # What the teacher rules out, with a logit of minus infinity, counts nothing.
    return temperature**2 * tf.reduce_sum(tf.math.multiply_no_nan(log_p - log_q, tf.exp(log_p)), axis=-1)


def hidden_loss(hidden: Hidden, teacher_hidden: Hidden, project: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    r"""The mean squared difference of hidden vectors, over the layers of the student, the tokens and the dimensions.

    Layer i of the n of a student learns from layer $\lfloor i m / n \rfloor$ of the m of its teacher; embeddings, layer
    0, from embeddings.

    Args:
        hidden: of the student, n + 1 layers.
        teacher_hidden: m + 1 layers; no gradient flows to them.
        project: makes the student's vectors [B, T, D] as wide as the teacher's.

    Returns:
        float32 [B].

    References: [Jiao et al., 2019](https://arxiv.org/abs/1909.10351), equations 8 and 9;
    [Sun et al., 2019](https://arxiv.org/abs/1908.09355).
    """
    last, teacher_last = len(hidden) - 1, len(teacher_hidden) - 1
    losses = []
    for index, (ours, is_token) in enumerate(hidden):
        theirs, _ = teacher_hidden[index * teacher_last // max(last, 1)]
        difference = project(tf.cast(ours, tf.float32)) - tf.stop_gradient(tf.cast(theirs, tf.float32))
        of_tokens = tf.reduce_mean(tf.square(difference), axis=-1)  # [B, T]
        weights = tf.cast(is_token, tf.float32)
        total = tf.reduce_sum(of_tokens * weights, axis=1)
        losses.append(tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1)))
    return tf.add_n(losses) / len(losses)


class DistilledTask:
    r"""A task whose loss says besides how far the student is from its teacher, at the same positions.

    $$(1 - s)\, \ell + s\, \ell_{soft} + w\, \ell_{hidden}$$

    Whatever an objective makes of a task it then makes of this: each of its passes asks for logits and then for their
    loss, and the hidden vectors are those of the pass that the logits came from.

    Args:
        task: its `forward` and `loss` are called.
        teacher: of whom is learnt.
        temperature: tau of `soft_loss`.
        soft_share: s.
        hidden_weight: w, of `hidden_loss`; if it is not 0, the model has a method `recorded_hidden`, as `Bert`.
    """

    def __init__(self, task: Any, teacher: Teacher, temperature: float, soft_share: float, hidden_weight: float):
        self.task, self.teacher = task, teacher
        self.temperature, self.soft_share, self.hidden_weight = temperature, soft_share, hidden_weight
        self._latest = threading.local()  # each replica is traced in a thread of its own

    def forward(self, model: keras.Model, batch: Any, training: bool) -> tf.Tensor:
        """The logits of the student."""
        with model.recorded_hidden() if self.hidden_weight else nullcontext() as self._latest.hidden:
            return self.task.forward(model, batch, training=training)

    def loss(self, logits: tf.Tensor, batch: Any, label_smoothing: float) -> Losses:
        """Losses of each position, and the weights that the task gives them."""
        losses, weights = self.task.loss(logits, batch, label_smoothing)
        teacher_logits, teacher_hidden = self.teacher.ask(batch)
        soft = soft_loss(logits, teacher_logits, self.temperature)
        losses = (1 - self.soft_share) * tf.cast(losses, tf.float32) + self.soft_share * soft
        if self.hidden_weight:
            project = self.teacher.projection or tf.identity
            of_hidden = hidden_loss(self._latest.hidden, teacher_hidden, project)  # [B]
            losses += self.hidden_weight * tf.reshape(of_hidden, [-1, *[1] * (losses.shape.rank - 1)])
        return losses, weights


class Distillation:
    """The objective inside, of a `DistilledTask`; in evaluation that of the task alone.

    Args:
        objective: made for the `DistilledTask`.
        evaluated: made for the task alone.
    """

    def __init__(self, objective: Objective, evaluated: Objective):
        self.objective, self.evaluated = objective, evaluated

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        return (self.objective if training else self.evaluated)(model, batch, training=training)
