"""What is minimised: losses per position, before any sum.

The trainer weighs and normalises them over the whole global batch, so an objective divides by nothing that depends on
how the batch is split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training.adversarial import (
    Fgm,
    FreeLb,
    Losses,
    Objective,
    Pgd,
    PgdInput,
    check_movable_input,
    perturbable_layers,
)
from kerasllm.training.distillation import Distillation, DistilledTask, Teacher
from kerasllm.training.objective_settings import (
    AroundSettings,
    DistillationSettings,
    FgmSettings,
    FreeLbSettings,
    ObjectiveSettings,
    PgdInputSettings,
    PgdSettings,
    PseudoLabelsSettings,
    RDropSettings,
)
from kerasllm.training.pseudo_labels import PseudoLabels


class Task(Protocol):
    """What an objective asks of a task."""

    def forward(self, model: keras.Model, batch: Any, training: bool) -> tf.Tensor:
        """The logits [B, T, V] of a batch."""

    def loss(self, logits: tf.Tensor, batch: Any, label_smoothing: float) -> Losses:
        """Losses [B, T] in nats, and their weights [B, T], 0 at padding."""


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    r"""Cross-entropy of each position against smoothed labels.

    $$\ell = -\sum_v q_v \log p_v, \quad q_v = (1 - \epsilon) [v = y] + \epsilon / V$$

    Written as $-\log p_y + \epsilon\, (z_y - \bar z)$ with the logits z, it needs no table of labels [B, T, V].

    Args:
        logits: float [B, T, V]; of any precision, the sums are in float32.
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

    flat_logits = tf.cast(tf.reshape(logits, [-1, vocabulary_size]), tf.float32)
    return tf.reshape(losses(flat_logits), tf.shape(labels))


def symmetric_divergence(logits: tf.Tensor, other_logits: tf.Tensor) -> tf.Tensor:
    r"""How far two predictions are apart at each position.

    $$D = \tfrac{1}{2} (KL(p \| q) + KL(q \| p)) = \tfrac{1}{2} \sum_v (p_v - q_v) (\log p_v - \log q_v)$$

    Args:
        logits: of p, float [..., V].
        other_logits: of q, of the same shape.

    Returns:
        float32 [...], in nats.
    """
    log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    log_q = tf.nn.log_softmax(tf.cast(other_logits, tf.float32))
    return tf.reduce_sum((tf.exp(log_p) - tf.exp(log_q)) * (log_p - log_q), axis=-1) / 2


class Supervised:
    """The loss of the task: smoothed in training, plain in evaluation.

    Args:
        task: its `forward` and `loss` are called.
        label_smoothing: share of the probability that is spread over all labels, in [0, 1).
    """

    def __init__(self, task: Task, label_smoothing: float = 0.0):
        self.task, self.label_smoothing = task, label_smoothing

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        logits = self.task.forward(model, batch, training=training)
        return self.task.loss(logits, batch, self.label_smoothing if training else 0.0)


class RDrop:
    r"""Two passes with different dropout masks, which shall predict the same.

    $$L = \tfrac{1}{2} (\ell_1 + \ell_2) + \tfrac{\alpha}{2} D$$

    with the symmetric divergence D of the two predictions, which is 0 without dropout.

    This is half of the paper's loss, so alpha means what it means there, and the loss stays comparable with that of a
    single pass. Both passes are one, over the batch followed by its copy. Plain cross-entropy in evaluation.

    Args:
        task: its `forward` and `loss` are called.
        label_smoothing: of both losses, in [0, 1).
        alpha: weight of the divergence.

    Reference: [Liang et al., 2021](https://arxiv.org/abs/2106.14448), equations 1 to 3.
    """

    def __init__(self, task: Task, label_smoothing: float, alpha: float):
        self.task, self.label_smoothing, self.alpha = task, label_smoothing, alpha

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        if not training:
            return Supervised(self.task)(model, batch, training=False)
        twice = tf.nest.map_structure(lambda tensor: tf.concat([tensor, tensor], axis=0), batch)  # [2 B, ...]
        logits = self.task.forward(model, twice, training=True)
        losses, weights = self.task.loss(logits, twice, self.label_smoothing)
        (first, second), (weights, _) = tf.split(losses, 2), tf.split(weights, 2)  # [B, T] each
        return (first + second) / 2 + self.alpha / 2 * symmetric_divergence(*tf.split(logits, 2)), weights


def build_objective(
    settings: ObjectiveSettings,
    task: Task,
    label_smoothing: float,
    seed: int,
    step: keras.Variable,
    teachers: Mapping[str, Teacher] | None = None,
) -> Objective:
    """The objective of a recipe.

    Args:
        settings: `training.objective`.
        task: its `forward` and `loss` are called.
        label_smoothing: in training, in [0, 1).
        seed: of what an objective draws at random.
        step: counts optimizer steps, such as `optimizer.iterations`.
        teachers: by the name that the settings have for them.
    """
    if isinstance(settings, RDropSettings):
        return RDrop(task, label_smoothing, settings.alpha)
    if isinstance(settings, PseudoLabelsSettings):
        return PseudoLabels(task, label_smoothing, settings.threshold, settings.weight)
    if settings.name == "supervised":
        return Supervised(task, label_smoothing)
    arguments = {key: value for key, value in settings if key not in ("name", "around", "teacher")}
    if isinstance(settings, DistillationSettings):
        distilled = DistilledTask(task, teachers[settings.teacher], **arguments)
        inside = build_objective(settings.around, distilled, label_smoothing, seed, step, teachers)
        return Distillation(inside, Supervised(task))
    inside = build_objective(settings.around, task, label_smoothing, seed, step, teachers)
    if isinstance(settings, FreeLbSettings):
        return FreeLb(inside, **arguments, seed=seed, step=step)
    return {FgmSettings: Fgm, PgdSettings: Pgd, PgdInputSettings: PgdInput}[type(settings)](inside, **arguments)


def check_objective(
    settings: ObjectiveSettings, model: keras.Model, inputs: Mapping[str, tf.DType], place: str
) -> None:
    """Finds what would otherwise come up in the first step with an objective.

    Args:
        settings: of the objective.
        model: that it will train.
        inputs: the features of a batch with their types.
        place: where the objective stands, `file:line: training.objective`.

    Raises:
        UserError: it perturbs what this model or this batch does not have, or compares what it cannot record.
    """
    if not hasattr(settings, "around"):
        return
    try:
        if isinstance(settings, PgdInputSettings):
            check_movable_input(settings.input, inputs)
        elif isinstance(settings, AroundSettings):
            perturbable_layers(model)
        elif settings.hidden_weight and not hasattr(model, "recorded_hidden"):
            raise UserError("hidden_weight: this model cannot record its hidden vectors; leave it out")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    check_objective(settings.around, model, inputs, f"{place}.around")


class PhasedObjective:
    """One objective after the other; which one counts is fixed when a graph is traced.

    Args:
        phases: (first step, objective) in the order of the steps, the first at step 0.
    """

    def __init__(self, phases: Sequence[tuple[int, Objective]]):
        self.phases, self.objective = phases, phases[0][1]

    def set_phase(self, step: int) -> None:
        """Takes the objective of the step after `step` optimizer steps."""
        self.objective = next(objective for first, objective in reversed(self.phases) if first <= step)

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        return self.objective(model, batch, training)
