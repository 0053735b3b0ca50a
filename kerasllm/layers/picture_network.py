"""What networks have in common that tell what a picture shows: they see its places, and conclude from these."""

from __future__ import annotations

import keras
import tensorflow as tf


class PictureNetwork(keras.Model):
    """A network in two halves, so that what each place contributes can be asked for.

    A subclass has `see(pictures, training)`, [B, H, W, D] -> what is seen at each place [B, H', W', F], and
    `logits_of(features, training)`, -> logits [B, C]; its `__init__` ends with `build_for`.

    Attributes:
        picture_scale: in training, sides of what it sees over those of the pictures; None where only one size fits.
    """

    picture_scale: float | None = 1.0

    def build_for(self, height: int, width: int, channels: int) -> None:
        """Makes all weights now, so that they can be loaded and counted; and not by a call of the model itself, after
        which it could get no further layer."""
        self.call(tf.zeros([1, height, width, channels]))
        self.built = True

    def call(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> logits [B, C]."""
        return self.logits_of(self.features(pictures, training=training), training=training)

    def features(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, H', W', F], what is seen at each place."""
        if training and self.picture_scale not in (None, 1.0):
            sides = [max(1, round(self.picture_scale * side)) for side in pictures.shape[1:3]]
            pictures = tf.image.resize(pictures, sides)
        return self.see(pictures, training=training)

    def embed(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, F], a vector for each picture: the mean over its places."""
        return tf.reduce_mean(self.features(pictures, training=training), axis=[1, 2])
