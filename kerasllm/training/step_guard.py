"""Which steps count: a loss scale for float16, and the check of each step's loss and gradient, as graph operations."""

from __future__ import annotations

import keras
import tensorflow as tf


def _state(value: float, dtype: str, name: str) -> keras.Variable:
    """A number that goes on from step to step; all replicas change it alike."""
    return keras.Variable(value, trainable=False, dtype=dtype, name=name, aggregation="only_first_replica")


class LossScale:
    r"""A factor of the loss that keeps small gradients above what float16 can hold, and large ones below.

    The gradient of $S \ell$ is divided by S in float32. Where it was not finite S is halved, and after
    `growth_steps` finite ones in a row it is doubled. S is a power of two, so scaling rounds nothing.

    Args:
        initial: S at first. The papers' 2^15 is for the mean of a batch; here the loss is a sum over positions, so 2^8
            stands for 2^15 to 2^20 of a mean over 128 to 4096 of them.
        growth_steps: N.

    Attributes:
        LEAST: S is not halved below it: a gradient that is not finite then has another cause.

    Reference: [Micikevicius et al., 2018](https://arxiv.org/abs/1710.03740), section 3.2.
    """

    LEAST, GREATEST = 2.0**-12, 2.0**24

    def __init__(self, initial: float = 2.0**8, growth_steps: int = 2000):
        self.growth_steps = growth_steps
        self.scale = _state(initial, "float32", "loss_scale")
        self.good_steps = _state(0, "int64", "good_steps")

    @property
    def variables(self) -> list[keras.Variable]:
        """What a run that goes on needs of it."""
        return [self.scale, self.good_steps]

    def update(self, is_finite: tf.Tensor) -> None:
        """Takes note of a step, in replica context; `is_finite`: bool scalar, whether its gradient was."""
        scale, good_steps = self.scale.value, self.good_steps.value + 1
        grows = good_steps >= self.growth_steps
        after = tf.where(is_finite, tf.where(grows, scale * 2, scale), scale / 2)
        self.scale.assign(tf.clip_by_value(after, self.LEAST, self.GREATEST))
        self.good_steps.assign(tf.where(is_finite & ~grows, good_steps, 0))


class StepGuard:
    r"""Lets only steps count whose loss and gradient are finite and whose loss is no spike.

    A spike is a loss above $f\, \bar\ell$, with the running mean of the losses of the steps that counted:
    $\bar\ell \leftarrow \bar\ell + (\ell - \bar\ell) / \min(n, N)$ after n of them, the plain mean of the first N. It
    is looked for once there have been N, and while the mean is above 0.

    Args:
        spike_factor: f; None looks for no spikes.
        spike_window_steps: N.
        loss_scale: for float16; None leaves the loss as it is.
    """

    def __init__(
        self, spike_factor: float | None = None, spike_window_steps: int = 100, loss_scale: LossScale | None = None
    ):
        self.spike_factor, self.window = spike_factor, spike_window_steps
        self.loss_scale = loss_scale
        self.mean_loss = self.steps_seen = None
        if spike_factor is not None:
            self.mean_loss = _state(0.0, "float32", "mean_loss")
            self.steps_seen = _state(0, "int64", "steps_seen")

    @property
    def variables(self) -> list[keras.Variable]:
        """What a run that goes on needs to decide alike."""
        own = [] if self.spike_factor is None else [self.mean_loss, self.steps_seen]
        return own + (self.loss_scale.variables if self.loss_scale else [])

    def judge(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Whether a step counts; to be asked once in each, in replica context.

        Args:
            loss: of the global batch, float32 scalar.
            gradient_norm: of its gradient, not scaled.

        Returns:
            A bool scalar; and figures: `applied` (1 or 0), `loss_limit` above which a loss is a spike, where those are
            looked for, and `loss_scale` of this step, where there is one.
        """
        is_finite = tf.math.is_finite(gradient_norm)
        applies = is_finite & tf.math.is_finite(loss)
        figures = {}
        if self.spike_factor is not None:
            figures["loss_limit"] = self._limit()
            applies &= loss <= figures["loss_limit"]
            self._remember(loss, applies)
        if self.loss_scale is not None:
            figures["loss_scale"] = tf.identity(self.loss_scale.scale.value)
            self.loss_scale.update(is_finite)
        return applies, {"applied": tf.cast(applies, tf.float32), **figures}

    def _limit(self) -> tf.Tensor:
        mean = self.mean_loss.value
        known = (self.steps_seen.value >= self.window) & (mean > 0)
        return tf.where(known, self.spike_factor * mean, float("inf"))

    def _remember(self, loss: tf.Tensor, applies: tf.Tensor) -> None:
        mean, seen = self.mean_loss.value, tf.minimum(self.steps_seen.value + 1, self.window)
        self.mean_loss.assign(tf.where(applies, mean + (loss - mean) / tf.cast(seen, tf.float32), mean))
        self.steps_seen.assign(tf.where(applies, seen, self.steps_seen.value))
