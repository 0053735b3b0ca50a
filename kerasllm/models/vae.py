"""Variational autoencoder: a picture becomes a few numbers, and these become a picture again."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from kerasllm.layers.convolution import Convolution
from kerasllm.layers.sampling import NormalSample


class Vae(keras.Model):
    r"""Learns $q(z \mid x) = N(\mu(x), \sigma^2(x))$ and $p(x \mid z)$, with $p(z) = N(0, 1)$.

    Args:
        height, width, channels: H, W and D of the pictures.
        filters: of the convolutions, each of which halves height and width, and of those back.
        hidden_dim: of a dense layer on both ways.
        latent_dim: Z.

    Raises:
        ValueError: height or width cannot be halved so often.

    Reference: [Kingma and Welling, 2013](https://arxiv.org/abs/1312.6114).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        filters: Sequence[int] = (32, 64),
        hidden_dim: int = 256,
        latent_dim: int = 16,
        **kwargs,
    ):
        super().__init__(**kwargs)
        shrink = 2 ** len(filters)
        if height % shrink or width % shrink:
            raise ValueError(f"{len(filters)} filters halve pictures of {height} x {width} too often")
        self.latent_dim, self.coarse = latent_dim, (height // shrink, width // shrink, filters[-1])
        self.down = [Convolution(each, 3, 2, use_bias=True, name=f"down_{i}") for i, each in enumerate(filters)]
        self.hidden = keras.layers.Dense(hidden_dim, "relu", name="hidden")
        self.statistics = keras.layers.Dense(2 * latent_dim, dtype="float32", name="statistics")
        self.sample = NormalSample(dtype="float32", name="sample")
        self.back = keras.layers.Dense(hidden_dim, "relu", name="back")
        self.places = keras.layers.Dense(self.coarse[0] * self.coarse[1] * self.coarse[2], "relu", name="places")
        self.up = [
            Convolution(each, 3, use_bias=True, name=f"up_{i}") for i, each in enumerate((*filters[-2::-1], filters[0]))
        ]
        self.pixels = Convolution(channels, 3, use_bias=True, dtype="float32", name="pixels")
        self.call(tf.zeros([1, height, width, channels]))  # now, so that weights can be loaded and counted
        self.built = True  # and not by a call of the model itself, after which it could get no further layer

    def call(self, pictures: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """pictures: [B, H, W, D] -> what they become, [B, H, W, D], and mean and log variance of z, [B, Z] each."""
        mean, log_variance = self.encode(pictures)
        return self.decode(self.sample(mean, log_variance, training=training)), mean, log_variance

    def encode(self, pictures: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """pictures: [B, H, W, D] -> mean and log variance of z, [B, Z] each."""
        x = pictures
        for convolution in self.down:
            x = tf.nn.relu(convolution(x))
        x = self.hidden(tf.reshape(x, [-1, self.coarse[0] * self.coarse[1] * self.coarse[2]]))
        mean, log_variance = tf.split(self.statistics(x), 2, axis=-1)
        return mean, log_variance

    def decode(self, latent: tf.Tensor) -> tf.Tensor:
        """latent: [B, Z] -> [B, H, W, D], not yet squeezed between 0 and 1."""
        x = tf.reshape(self.places(self.back(latent)), [-1, *self.coarse])
        for convolution in self.up:
            x = tf.nn.relu(convolution(tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)))
        return self.pixels(x)
