"""Which places of a picture a model has looked at: maps that say how much each of them counts for a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

BATCH_SIZE = 64


def grad_cam(model: Any, pictures: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    r"""What the last places of a convolutional network say for a class.

    $$\alpha_k = \frac{1}{Z} \sum_{ij} \frac{\partial y}{\partial A^k_{ij}}, \quad
    L_{ij} = \text{relu}\Big(\sum_k \alpha_k A^k_{ij}\Big)$$

    with the logit y of the class and the features A, which `model.features` gives and `model.logits_of` goes on from.

    Args:
        pictures: [B, H, W, D], as the model takes them.
        classes: int32 [B].

    Returns:
        float32 [B, H', W'], 0 or more, with the size of the features.

    Reference: [Selvaraju et al., 2016](https://arxiv.org/abs/1610.02391).
    """
    features = model.features(pictures)
    with tf.GradientTape() as tape:
        tape.watch(features)
        chosen = tf.gather(model.logits_of(features), classes, batch_dims=1)  # [B]
    gradients = tape.gradient(chosen, features)  # [B, H', W', F]
    weights = tf.reduce_mean(gradients, axis=[1, 2], keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))


def occlusion(model: Any, picture: np.ndarray, chosen: int, size: int, stride: int) -> np.ndarray:
    """How much less probable a class becomes when a square of the picture is hidden.

    Args:
        picture: float32 [H, W, D], as the model takes it; what is hidden gets its mean.
        chosen: the class.
        size: side of the square, in pixels.
        stride: pixels from one square to the next.

    Returns:
        float32 [H, W]: for each pixel the mean over the squares that hide it; less than 0 where hiding helps.

    Reference: [Zeiler and Fergus, 2013](https://arxiv.org/abs/1311.2901), section 4.2.
    """
    height, width, _ = picture.shape
    places = [
        (slice(max(0, top), top + size), slice(max(0, left), left + size))
        for top in range(stride - size, height, stride)
        for left in range(stride - size, width, stride)
    ]
    fill = picture.mean(axis=(0, 1))
    drops, counts = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    before = _probabilities(model, picture[np.newaxis])[0, chosen]
    for start in range(0, len(places), BATCH_SIZE):
        some = places[start : start + BATCH_SIZE]
        hidden = np.repeat(picture[np.newaxis], len(some), axis=0)
        for copy, place in zip(hidden, some, strict=True):
            copy[place] = fill
        for place, now in zip(some, _probabilities(model, hidden)[:, chosen], strict=True):
            drops[place] += before - now
            counts[place] += 1
    return drops / np.maximum(counts, 1)


def _probabilities(model: Any, pictures: np.ndarray) -> np.ndarray:
    return tf.nn.softmax(model(pictures)).numpy()
