"""Vision Transformer: a picture is read as a sequence of patches, by the blocks that read sentences."""

from __future__ import annotations

import keras
import tensorflow as tf

from kerasllm.layers.dropout import Dropout
from kerasllm.layers.embedding import PositionEmbedding
from kerasllm.layers.normalization import LayerNormalization
from kerasllm.layers.picture_network import PictureNetwork
from kerasllm.layers.projection import Projection
from kerasllm.layers.transformer import TransformerBlock


class VisionTransformer(PictureNetwork):
    """Tells what a picture shows.

    Args:
        height, width, channels: H, W and D of the pictures.
        num_classes: C.
        patch_size: p, side of a patch in pixels; divides H and W.
        num_layers: blocks.
        num_heads: of each.
        hidden_dim: E.
        intermediate_dim: of the feed-forward networks.
        dropout: rate after the patches and after each part of a block.

    Raises:
        ValueError: `patch_size` does not divide the picture, or `num_heads` does not divide `hidden_dim`.

    Reference: [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929); the mean over the patches in place of a
    class token: [Beyer et al., 2022](https://arxiv.org/abs/2205.01580).
    """

    picture_scale = None

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        patch_size: int = 4,
        num_layers: int = 6,
        num_heads: int = 4,
        hidden_dim: int = 128,
        intermediate_dim: int = 512,
        dropout: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide pictures of {height} x {width}")
        self.patch_size, self.rows, self.columns = patch_size, height // patch_size, width // patch_size
        self.patches = Projection(hidden_dim, name="patches")
        self.positions = PositionEmbedding(self.rows * self.columns, hidden_dim, "learned", 0.02, name="positions")
        self.patch_dropout = Dropout(dropout, name="patch_dropout")
        self.blocks = [
            TransformerBlock(num_heads, hidden_dim, intermediate_dim, "gelu", dropout, name=f"layer_{index}")
            for index in range(num_layers)
        ]
        self.last_normalization = LayerNormalization(name="last_normalization")
        self.head = keras.layers.Dense(num_classes, dtype="float32", name="head")
        self.build_for(height, width, channels)

    def logits_of(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """features: [B, H / p, W / p, E], from `features` -> logits [B, C]."""
        return self.head(tf.reduce_mean(features, axis=[1, 2]))

    def see(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        """pictures: [B, H, W, D] -> [B, H / p, W / p, E], what each patch has seen."""
        x = self.patches(self.cut(pictures)) + self.positions(tf.range(self.rows * self.columns))  # [B, N, E]
        x = self.patch_dropout(x, training=training)
        for block in self.blocks:
            x, _ = block(x, attention_mask=None, training=training)
        return tf.reshape(self.last_normalization(x), [-1, self.rows, self.columns, x.shape[-1]])

    def cut(self, pictures: tf.Tensor) -> tf.Tensor:
        """pictures: [B, H, W, D] -> their patches row by row, [B, N, p * p * D]."""
        size, channels = self.patch_size, pictures.shape[3]
        x = tf.reshape(pictures, [-1, self.rows, size, self.columns, size, channels])
        x = tf.transpose(x, [0, 1, 3, 2, 4, 5])
        return tf.reshape(x, [-1, self.rows * self.columns, size * size * channels])
