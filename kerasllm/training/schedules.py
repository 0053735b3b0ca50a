"""Learning-rate schedules by name: a warm-up, times a shape that runs from its end to the end of the training.

Steps count from 0. `cosine` is Keras's own `CosineDecay`, whose warm-up begins with a rate of 0 at step 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import keras
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training.schedule_settings import ScheduleSettings


@dataclass(frozen=True)
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    r"""What all schedules share: up in a straight line, then a shape.

    $$\text{rate}(t) = \text{peak} \cdot \min\left(1, \frac{t + 1}{w}\right) \cdot \text{shape}(t)$$

    Args:
        peak_learning_rate: the rate where the shape is 1.
        warmup_steps: w, optimizer steps; the first step after them has number w.
        total_steps: n, optimizer steps of the whole run, more than w.
    """

    peak_learning_rate: float
    warmup_steps: int
    total_steps: int

    def share(self, step: tf.Tensor) -> tf.Tensor:
        """p = (t - w) / (n - w): 0 during the warm-up, then up to 1, which comes one step after the last."""
        return tf.clip_by_value((step - self.warmup_steps) / (self.total_steps - self.warmup_steps), 0.0, 1.0)

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        """Share of the peak at step t, float32; during the warm-up what it begins with. Given by each schedule."""
        raise NotImplementedError

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """The rate of step t."""
        step = tf.cast(step, tf.float32)
        warmup = tf.minimum(1.0, (step + 1.0) / max(1, self.warmup_steps))
        return self.peak_learning_rate * (warmup * self.shape(step))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return asdict(self)


class Constant(Schedule):
    """shape = 1."""

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        return tf.ones_like(step)


@dataclass(frozen=True)
class Step(Schedule):
    r"""$\text{shape} = c^{\lfloor (t - w) / k \rfloor}$.

    Args:
        every_steps: k, optimizer steps; None is a third of those after the warm-up.
        factor: c.

    Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385), section 3.4.
    """

    every_steps: int | None
    factor: float

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        every_steps = self.every_steps or math.ceil((self.total_steps - self.warmup_steps) / 3)
        return self.factor ** tf.floor(tf.maximum(step - self.warmup_steps, 0.0) / every_steps)


@dataclass(frozen=True)
class Exponential(Schedule):
    """shape = to^p.

    Args:
        to: share of the peak at the end of the run.
    """

    to: float

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        return self.to ** self.share(step)


@dataclass(frozen=True)
class Linear(Schedule):
    """shape = 1 - (1 - to) p.

    Args:
        to: share of the peak at the end of the run.

    Reference: [Devlin et al., 2019](https://arxiv.org/abs/1810.04805), appendix A.2.
    """

    to: float

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        return 1.0 - (1.0 - self.to) * self.share(step)


class InverseSquareRoot(Schedule):
    r"""$\text{shape} = \sqrt{w / (t + 1)}$ from step w - 1 on; with no warm-up, w = 1.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 5.3, with the peak given directly.
    """

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        warmup = float(max(1, self.warmup_steps))
        return tf.sqrt(warmup / tf.maximum(step + 1.0, warmup))


@dataclass(frozen=True)
class OneCycle(Schedule):
    r"""Up in a straight line over a share u of the steps after the warm-up, then down along half a cosine.

    $$\text{shape} = \begin{cases} 1/a + (1 - 1/a)\, p / u & p < u \\
    1/b + (1 - 1/b)\, (1 + \cos(\pi (p - u) / (1 - u))) / 2 & p \ge u \end{cases}$$

    Args:
        up_share: u.
        start_divisor: a.
        end_divisor: b.

    Reference: [Smith and Topin, 2018](https://arxiv.org/abs/1708.07120).
    """

    up_share: float
    start_divisor: float
    end_divisor: float

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        share, start, end = self.share(step), 1.0 / self.start_divisor, 1.0 / self.end_divisor
        up = start + (1.0 - start) * share / self.up_share
        down = (1.0 + tf.cos(math.pi * (share - self.up_share) / (1.0 - self.up_share))) / 2.0
        return tf.where(share < self.up_share, up, end + (1.0 - end) * down)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    r"""The peak, and over a share s of the run at its end down to `to`: with $q = (t - n + s n) / (s n)$, at least 0,

    $$\text{shape} = 1 - (1 - \text{to})\, q \quad\text{or}\quad 1 - (1 - \text{to}) \sqrt{q}$$

    Args:
        decay_share: s; s n is rounded to whole steps, at least one.
        decay: "linear" or "one_minus_square_root".
        to: share of the peak at the end of the run.

    References: [Hu et al., 2024](https://arxiv.org/abs/2404.06395);
    [Hägele et al., 2024](https://arxiv.org/abs/2405.18392) for the square root.
    """

    decay_share: float
    decay: str
    to: float

    @property
    def decay_steps(self) -> int:
        """Optimizer steps on the way down."""
        return max(1, round(self.decay_share * self.total_steps))

    def shape(self, step: tf.Tensor) -> tf.Tensor:
        begin = self.total_steps - self.decay_steps
        share = tf.clip_by_value((step - begin) / self.decay_steps, 0.0, 1.0)
        return 1.0 - (1.0 - self.to) * (share if self.decay == "linear" else tf.sqrt(share))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": Step,
    "exponential": Exponential,
    "linear": Linear,
    "inverse_square_root": InverseSquareRoot,
    "one_cycle": OneCycle,
    "warmup_stable_decay": WarmupStableDecay,
}


def build_schedule(
    settings: ScheduleSettings, peak_learning_rate: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The schedule of a run of `total_steps` optimizer steps.

    Args:
        settings: the section `training.schedule`.
        peak_learning_rate: its greatest rate.

    Raises:
        UserError: it is longer than the run; it begins with the setting's key, `warmup_steps: ...`.
    """
    warmup_steps, rest = settings.warmup_steps, total_steps - settings.warmup_steps
    if rest <= 0:
        raise UserError(f"warmup_steps: {warmup_steps} is not below the {total_steps} steps of training; shorten it")
    if settings.name == "step" and (settings.every_steps or 0) >= rest:
        raise UserError(f"every_steps: {settings.every_steps} is not below the {rest} after the warm-up; shorten it")
    if settings.name == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup_steps else peak_learning_rate,
            decay_steps=rest,
            alpha=settings.to,
            warmup_target=peak_learning_rate if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    arguments = settings.model_dump(exclude={"name"})
    schedule = SCHEDULES[settings.name](peak_learning_rate, total_steps=total_steps, **arguments)
    if isinstance(schedule, WarmupStableDecay) and schedule.decay_steps > rest:
        raise UserError(f"decay_share: its {schedule.decay_steps} steps exceed the {rest} after the warm-up; lower it")
    return schedule
