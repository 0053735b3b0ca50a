"""Random numbers inside a model: a sample of a normal distribution, through which gradients flow."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.dropout import seed_of_replica


class NormalSample(keras.layers.Layer):
    r"""$z = \mu + \sigma \odot \epsilon, \quad \epsilon \sim N(0, 1)$ in training, and $\mu$ in answers.

    What is drawn is a function of the generator's state and of the replica, as in `Dropout`.

    Reference: [Kingma and Welling, 2013](https://arxiv.org/abs/1312.6114), section 2.4.
    """

    def __init__(self, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(seed, name="seed")
        self.built = True

    def call(self, mean: tf.Tensor, log_variance: tf.Tensor, training: bool = False) -> tf.Tensor:
        """mean, log_variance: [B, Z], the latter $\\log \\sigma^2$ -> [B, Z]."""
        if not training:
            return mean
        noise = tf.random.stateless_normal(tf.shape(mean), seed_of_replica(self.seed_generator), dtype=mean.dtype)
        return mean + tf.exp(0.5 * log_variance) * noise


def divergence_from_normal(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    r"""$D(N(\mu, \sigma^2) \,\|\, N(0, 1)) = \frac{1}{2} \sum_i (\mu_i^2 + \sigma_i^2 - \log \sigma_i^2 - 1)$ in nats.

    Args:
        mean, log_variance: [B, Z].

    Returns:
        [B]
    """
    return 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - log_variance - 1.0, axis=-1)
