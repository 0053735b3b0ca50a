"""Learning-rate schedules: Keras's own, and the one of the Transformer paper, which Keras lacks."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.training.settings import ScheduleSettings


class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    r"""Up in a straight line, then down with the root of the step.

    $$\text{rate}(t) = \text{peak} \cdot \min\left(\frac{t + 1}{w}, \sqrt{\frac{w}{t + 1}}\right)$$

    Args:
        peak_learning_rate: reached at step `warmup_steps - 1`.
        warmup_steps: w, optimizer steps, at least 1.

    Reference: [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), section 5.3, with the peak given directly.
    """

    def __init__(self, peak_learning_rate: float, warmup_steps: int):
        super().__init__()
        self.peak_learning_rate, self.warmup_steps = peak_learning_rate, max(1, warmup_steps)

    def __call__(self, step):
        steps = tf.cast(step, tf.float32) + 1.0
        warmup = float(self.warmup_steps)
        return self.peak_learning_rate * tf.minimum(steps / warmup, tf.sqrt(warmup / steps))

    def get_config(self) -> dict:
        return {"peak_learning_rate": self.peak_learning_rate, "warmup_steps": self.warmup_steps}


class Constant(keras.optimizers.schedules.LearningRateSchedule):
    """Up in a straight line over `warmup_steps`, then always `peak_learning_rate`."""

    def __init__(self, peak_learning_rate: float, warmup_steps: int):
        super().__init__()
        self.peak_learning_rate, self.warmup_steps = peak_learning_rate, max(1, warmup_steps)

    def __call__(self, step):
        return self.peak_learning_rate * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1.0) / self.warmup_steps)

    def get_config(self) -> dict:
        return {"peak_learning_rate": self.peak_learning_rate, "warmup_steps": self.warmup_steps}


def build_schedule(settings: ScheduleSettings, peak_learning_rate: float, total_steps: int):
    """The schedule of a run of `total_steps` optimizer steps.

    Raises:
        ValueError: the warm-up is not shorter than the run.
    """
    if settings.warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps {settings.warmup_steps} is not below the {total_steps} steps of the whole training"
        )
    if settings.name == "inverse_square_root":
        return InverseSquareRoot(peak_learning_rate, settings.warmup_steps)
    if settings.name == "constant":
        return Constant(peak_learning_rate, settings.warmup_steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if settings.warmup_steps else peak_learning_rate,
        decay_steps=total_steps - settings.warmup_steps,
        warmup_target=peak_learning_rate if settings.warmup_steps else None,
        warmup_steps=settings.warmup_steps,
    )
