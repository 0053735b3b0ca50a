"""Dropout whose random bits are cheap, and different on every replica."""

from __future__ import annotations

import keras
import tensorflow as tf


class Dropout(keras.layers.Layer):
    r"""Sets each element to 0 with probability `rate` in training, and divides the others by `1 - rate`.

    Keras draws one random float per element. Here a 16-bit integer decides, two from each 32 random bits, which takes
    half the time on a CPU; `rate` is therefore rounded to a multiple of 1/65536. The mask is a function of the
    generator's state and of the replica: replicas of one step draw different masks.

    Args:
        rate: probability in [0, 1); a layer that began above 0 can be set to another one, which counts in graphs traced
            afterwards.
        seed: integer; the sequence of masks repeats exactly from it.

    Raises:
        ValueError: `rate` is outside [0, 1).

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html).
    """

    LEVELS = 1 << 16

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), found {rate}")
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator(seed, name="seed") if self.dropped_levels else None
        self.built = True

    @property
    def dropped_levels(self) -> int:
        """How many of the 65536 levels are dropped, at the rate of this moment."""
        return round(self.rate * self.LEVELS)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """x: float tensor of any shape."""
        if not training or not self.dropped_levels:
            return x
        threshold = tf.constant(self.dropped_levels - self.LEVELS // 2, tf.int16)
        kept = self._random_levels(tf.shape(x)) >= threshold
        kept.set_shape(x.shape)
        factor = tf.cast(self.LEVELS / (self.LEVELS - self.dropped_levels), x.dtype)
        return x * tf.where(kept, factor, tf.zeros([], x.dtype))

    def _random_levels(self, shape: tf.Tensor) -> tf.Tensor:
        """Integers of the given shape, uniform in [-32768, 32768)."""
        seed = seed_of_replica(self.seed_generator)
        size = tf.reduce_prod(shape)
        bits = tf.random.stateless_uniform([(size + 1) // 2], seed, minval=None, maxval=None, dtype=tf.int32)
        return tf.reshape(tf.reshape(tf.bitcast(bits, tf.int16), [-1])[:size], shape)


def seed_of_replica(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """The next seed of a generator, int32 [2], another one on each replica."""
    seed = tf.cast(generator.next(), tf.int32)
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return seed
    return seed + tf.stack([replica.replica_id_in_sync_group * 1_000_003, 0])
