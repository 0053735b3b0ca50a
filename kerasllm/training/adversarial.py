"""Objectives on perturbed input, around any other objective; in evaluation each is the one that it stands around.

A perturbation is computed for each example by itself, so it is the same however the batch is split over replicas and
micro-batches, and no gradient flows through it. Each pass draws its own dropout masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kerasllm.errors import UserError

Losses = tuple[tf.Tensor, tf.Tensor]
Objective = Callable[..., Losses]
"""`objective(model, batch, training) -> (losses, weights)`, per position, neither summed nor divided by anything."""

Perturbation = Callable[[int, tf.Tensor, tf.Tensor], tf.Tensor]
"""`perturbation(call, vectors [B, T, D], is_token [B, T])` -> float32 [B, T, D], for each call of an embedding."""


def length_per_example(x: tf.Tensor) -> tf.Tensor:
    """The Euclidean norm over all axes but the first: [B, ...] -> [B, 1, ...]."""
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=tuple(range(1, x.shape.rank)), keepdims=True))


def ascend(perturbation: tf.Tensor, gradient: tf.Tensor, step_size: float, epsilon: float) -> tf.Tensor:
    r"""One step up the gradient, then back into the ball; for each example by itself.

    $$r' = \Pi_{\|r\| \le \epsilon} (r + \alpha\, g / \|g\|)$$

    Args:
        perturbation: r, float [B, ...].
        gradient: g, of the same shape; an example whose gradient is 0 stays where it is.
        step_size: alpha.
        epsilon: radius of the ball.
    """
    moved = perturbation + step_size * tf.math.divide_no_nan(gradient, length_per_example(gradient))
    return moved * tf.minimum(1.0, tf.math.divide_no_nan(epsilon, length_per_example(moved)))


def perturbable_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model that have a method `perturbed`, such as `TokenEmbedding`.

    Raises:
        UserError: it has none.
    """
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "perturbed")]
    if not layers:
        raise UserError(
            "the model has no embedding that can be perturbed; use pgd_input for a float input, or supervised"
        )
    return layers


def check_movable_input(name: str, dtypes: Mapping[str, tf.DType]) -> None:
    """Raises UserError if a batch whose features have these types has no such input that could be moved."""
    if name not in dtypes or not (dtypes[name].is_floating or dtypes[name] == tf.uint8):
        names = ", ".join(f"{feature} ({dtype.name})" for feature, dtype in dtypes.items())
        raise UserError(f"no float input '{name}'; the batch has {names}")


@dataclass(frozen=True)
class Pass:
    """One pass through a model whose embeddings were perturbed.

    Attributes:
        losses: [B, T], of the objective inside.
        weights: [B, T].
        perturbations: what was added, one tensor for each call of an embedding.
        gradients: of the weighted sum of the losses, by the same calls; a function, since the last pass needs none.
    """

    losses: tf.Tensor
    weights: tf.Tensor
    perturbations: list[tf.Tensor]
    gradients: Callable[[], list[tf.Tensor]]

    def ascended(self, step_size: float, epsilon: float) -> Perturbation:
        """What to add in the next pass: each perturbation one step up its gradient."""
        pairs = zip(self.perturbations, self.gradients(), strict=True)
        following = [tf.stop_gradient(ascend(r, g, step_size, epsilon)) for r, g in pairs]
        return lambda call, vectors, is_token: following[call]


def perturbed_pass(objective: Objective, model: keras.Model, batch: Any, perturbation: Perturbation) -> Pass:
    """Computes an objective while a tensor is added to what each call of an embedding gives.

    Args:
        objective: the one inside.
        model: has layers with a method `perturbed`, such as `TokenEmbedding`.
        batch: of the objective.
        perturbation: asked at each call of an embedding, in their order.

    Raises:
        UserError: the model has no such layer.
    """
    layers = perturbable_layers(model)
    added: list[tf.Tensor] = []
    points: list[tf.Tensor] = []

    def perturb(vectors: tf.Tensor, is_token: tf.Tensor) -> tf.Tensor:
        added.append(perturbation(len(added), vectors, is_token))
        points.append(vectors + tf.cast(added[-1], vectors.dtype))
        tape.watch(points[-1])
        return points[-1]

    with tf.GradientTape() as tape, ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.perturbed(perturb))
        losses, weights = objective(model, batch, training=True)
        total = tf.reduce_sum(losses * weights)

    def gradients() -> list[tf.Tensor]:
        found = tape.gradient(total, points, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.cast(gradient, tf.float32) for gradient in found]

    return Pass(losses, weights, added, gradients)


def no_perturbation(call: int, vectors: tf.Tensor, is_token: tf.Tensor) -> tf.Tensor:
    """A `Perturbation` of zeros."""
    return tf.zeros_like(vectors, tf.float32)


class Pgd:
    r"""Trains on embeddings that were moved up the gradient of the loss, and on the clean ones, half and half.

    $$L = \tfrac{1}{2} \ell(e) + \tfrac{1}{2} \ell(e + r_K), \quad
    r_0 = 0, \quad r_{k+1} = \Pi_{\|r\| \le \epsilon} (r_k + \alpha\, g_k / \|g_k\|)$$

    with the embedded sequence e and the gradient g of its loss. The norm is over all positions and dimensions of one
    embedded sequence: an encoder-decoder's source and target have a ball each. Padding has no gradient, so it is not
    perturbed. The papers minimise the sum of clean and perturbed loss, or the perturbed loss alone; the mean has the
    gradient of the sum, halved, and stays comparable with the loss of an unperturbed run.

    A step costs K + 1 forward and K + 2 backward passes.

    Args:
        objective: the one inside.
        epsilon: radius of the ball, in the unit of the embedding.
        step_size: alpha, in the same unit.
        steps: K.

    References: [Madry et al., 2018](https://arxiv.org/abs/1706.06083);
    [Miyato et al., 2017](https://arxiv.org/abs/1605.07725), on embeddings.
    """

    def __init__(self, objective: Objective, epsilon: float, step_size: float, steps: int):
        self.objective, self.epsilon, self.step_size, self.steps = objective, epsilon, step_size, steps

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        if not training:
            return self.objective(model, batch, training=False)
        clean = latest = perturbed_pass(self.objective, model, batch, no_perturbation)
        for _ in range(self.steps):
            following = latest.ascended(self.step_size, self.epsilon)
            latest = perturbed_pass(self.objective, model, batch, following)
        return (clean.losses + latest.losses) / 2, clean.weights


class Fgm(Pgd):
    r"""The fast gradient method: `Pgd` whose one step reaches the surface of the ball.

    $$L = \tfrac{1}{2} \ell(e) + \tfrac{1}{2} \ell(e + r), \quad r = \epsilon\, g / \|g\|$$

    Args:
        objective: the one inside.
        epsilon: length of the perturbation, in the unit of the embedding.

    Reference: [Miyato et al., 2017](https://arxiv.org/abs/1605.07725).
    """

    def __init__(self, objective: Objective, epsilon: float):
        super().__init__(objective, epsilon, step_size=epsilon, steps=1)


class FreeLb:
    r"""Trains on every point of an ascent from a random start: a "free large batch" of K perturbed copies.

    $$L = \frac{1}{K} \sum_{k=0}^{K-1} \ell(e + r_k), \quad r_0 \sim U(-\epsilon, \epsilon) / \sqrt{N}, \quad
    r_{k+1} = \Pi_{\|r\| \le \epsilon} (r_k + \alpha\, g_k / \|g_k\|)$$

    with the number N of elements of an embedded sequence, padding left out, so that the start lies in the ball. The
    rest is as in `Pgd`, but that there is no clean pass. (The paper also draws one dropout mask for all K passes.)

    The start is a function of seed, step, replica and call alone. A step costs K forward and 2K - 1 backward passes.

    Args:
        objective: the one inside.
        epsilon: radius of the ball, in the unit of the embedding.
        step_size: alpha, in the same unit.
        steps: K.
        seed: of the random starts.
        step: integer variable that counts optimizer steps, such as `optimizer.iterations`.

    Reference: [Zhu et al., 2020](https://arxiv.org/abs/1909.11764), algorithm 1.
    """

    def __init__(self, objective: Objective, epsilon: float, step_size: float, steps: int, seed: int, step: Any):
        self.objective, self.epsilon, self.step_size, self.steps = objective, epsilon, step_size, steps
        self.seed, self.step = seed, step

    def __call__(self, model: keras.Model, batch: Any, training: bool) -> Losses:
        if not training:
            return self.objective(model, batch, training=False)
        latest = perturbed_pass(self.objective, model, batch, self.random_start)
        losses = [latest.losses]
        for _ in range(self.steps - 1):
            following = latest.ascended(self.step_size, self.epsilon)
            latest = perturbed_pass(self.objective, model, batch, following)
            losses.append(latest.losses)
        return tf.add_n(losses) / self.steps, latest.weights

    def random_start(self, call: int, vectors: tf.Tensor, is_token: tf.Tensor) -> tf.Tensor:
        """A `Perturbation` that is drawn anew for each step, replica and call."""
        seed = tf.constant([self.seed % 2**31, 0], tf.int32)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for number in (tf.convert_to_tensor(self.step), replica, call):
            seed = tf.random.fold_in(seed, tf.cast(number, tf.int32))
        noise = tf.random.stateless_uniform(tf.shape(vectors), seed, -self.epsilon, self.epsilon)  # [B, T, D]
        is_token = tf.cast(is_token, tf.float32)[..., tf.newaxis]  # [B, T, 1]
        elements = tf.reduce_sum(is_token, axis=1, keepdims=True) * vectors.shape[-1]  # [B, 1, 1]
        return tf.math.divide_no_nan(noise * is_token, tf.sqrt(elements))


class PgdInput:
    r"""Trains on a float input that was moved up the gradient of the loss, and on the clean one, half and half.

    $$L = \tfrac{1}{2} \ell(x_0) + \tfrac{1}{2} \ell(x_K), \quad
    x_{k+1} = \Pi (x_k + \alpha\, \mathrm{sign}(g_k))$$

    where the projection keeps every element within epsilon of $x_0$ and in the range of the input: the ball of the
    infinity norm, as is usual for images.

    Args:
        objective: the one inside; its batch is a dict.
        input: name of the feature, float [B, ...], or uint8, whose numbers then are moved as floats.
        input_range: its least and greatest value.
        epsilon: greatest change of an element, in the unit of the input.
        step_size: alpha, in the same unit.
        steps: K.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083).
    """

    def __init__(
        self,
        objective: Objective,
        input: str,
        input_range: Sequence[float],
        epsilon: float,
        step_size: float,
        steps: int,
    ):
        self.objective, self.input, self.input_range = objective, input, input_range
        self.epsilon, self.step_size, self.steps = epsilon, step_size, steps

    def __call__(self, model: keras.Model, batch: dict[str, tf.Tensor], training: bool) -> Losses:
        if not training:
            return self.objective(model, batch, training=False)
        check_movable_input(self.input, {name: tensor.dtype for name, tensor in batch.items()})
        (least, greatest), x = self.input_range, batch[self.input]
        x = tf.cast(x, tf.float32) if x.dtype == tf.uint8 else x  # pixels
        low, high = tf.maximum(x - self.epsilon, least), tf.minimum(x + self.epsilon, greatest)
        passes = []
        for step in range(self.steps + 1):
            with tf.GradientTape() as tape:
                tape.watch(x)
                passes.append(self.objective(model, {**batch, self.input: x}, training=True))
                total = tf.reduce_sum(tf.multiply(*passes[-1]))
            if step < self.steps:
                uphill = tf.sign(tape.gradient(total, x, unconnected_gradients=tf.UnconnectedGradients.ZERO))
                x = tf.stop_gradient(tf.clip_by_value(x + self.step_size * uphill, low, high))
        (clean, weights), (adversarial, _) = passes[0], passes[-1]
        return (clean + adversarial) / 2, weights
