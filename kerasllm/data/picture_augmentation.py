"""Changes of training pictures that leave what they show, in NumPy on the whole batch; all follow from its draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from kerasllm.data.draws import Batch, Draws
from kerasllm.errors import UserError

Shape = tuple[int, int, int]
GREY = np.float32([0.2989, 0.587, 0.114])
"""What red, green and blue count for in a grey picture (ITU-R BT.601)."""


class PictureAugmentation:
    """What all of them share: the features are rows of pixels [B, H * W * D].

    Args:
        shapes: of the features that are changed, each H, W and D.
    """

    def __init__(self, shapes: Mapping[str, Shape]):
        self.shapes = dict(shapes)

    def check(self) -> None:
        """Raises UserError, without a place, if the pictures cannot be changed like that; by default they can."""

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        changed = {}
        for name, shape in self.shapes.items():
            pictures = batch[name].reshape(-1, *shape)
            changed[name] = self.change(pictures, draw).reshape(batch[name].shape)
        return {**batch, **changed}

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        """uint8 [B, H, W, D] -> the same shape and type; overridden by each."""
        raise NotImplementedError


class Flip(PictureAugmentation):
    """Exchanges left and right in half of the pictures."""

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        flipped = pictures.copy()
        chosen = draw.chosen(0.5, 1)[:, 0]
        flipped[chosen] = pictures[chosen, :, ::-1]
        return flipped


class Shift(PictureAugmentation):
    """Moves each picture by 0 to `reach` pixels up or down, and as many left or right.

    It is the same as to crop a picture that has `reach` pixels more around it: zeros, or, with "reflect" as `padding`,
    the picture mirrored at its outermost pixels, which do not come twice.
    """

    def __init__(self, shapes: Mapping[str, Shape], reach: int, padding: str = "zeros"):
        super().__init__(shapes)
        self.reach, self.mode = reach, "constant" if padding == "zeros" else padding

    def check(self) -> None:
        for height, width, _ in self.shapes.values():
            if self.reach >= min(height, width):
                raise UserError(f"{self.reach} pixels are not less than the {min(height, width)} of a side; take fewer")

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        _, height, width, _ = pictures.shape
        first = draw.integers(2 * self.reach + 1, 2)  # [B, 2], of the crop: from the top, from the left
        margin = (self.reach, self.reach)
        padded = np.pad(pictures, [(0, 0), margin, margin, (0, 0)], self.mode)
        rows = first[:, 0, np.newaxis] + np.arange(height)  # [B, H]
        columns = first[:, 1, np.newaxis] + np.arange(width)  # [B, W]
        examples = np.arange(len(pictures))[:, np.newaxis, np.newaxis]
        return padded[examples, rows[:, :, np.newaxis], columns[:, np.newaxis, :]]


class Cutout(PictureAugmentation):
    """Sets a square of `size` by `size` pixels around a pixel of each picture to 0, as far as it lies inside.

    Reference: [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552).
    """

    def __init__(self, shapes: Mapping[str, Shape], size: int):
        super().__init__(shapes)
        self.size = size

    def check(self) -> None:
        for height, width, _ in self.shapes.values():
            if self.size >= min(height, width):
                raise UserError(f"{self.size} pixels are not less than the {min(height, width)} of a side; take fewer")

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        hit = []
        for extent, number in zip(pictures.shape[1:3], (0, 1), strict=True):
            first = draw.apart(number).integers(extent, 1) - self.size // 2  # [B, 1]
            hit.append((np.arange(extent) >= first) & (np.arange(extent) < first + self.size))
        is_hit = hit[0][:, :, np.newaxis] & hit[1][:, np.newaxis, :]
        return np.where(is_hit[..., np.newaxis], np.uint8(0), pictures)


class ColorJitter(PictureAugmentation):
    r"""Changes brightness, contrast and saturation of each picture, one after the other.

    With a factor f drawn from $[1 - s, 1 + s]$ for each: $f x$, then $m + f (x - m)$ with the picture's mean grey m,
    then $g + f (x - g)$ with the grey g of each pixel.

    Args:
        strengths: s of brightness, contrast and saturation, each in [0, 1].

    Reference: [Howard, 2013](https://arxiv.org/abs/1312.5402).
    """

    def __init__(self, shapes: Mapping[str, Shape], strengths: tuple[float, float, float]):
        super().__init__(shapes)
        self.strengths = strengths

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        shares = draw.bits(3) / np.float64(2.0**64)  # [B, 3], in [0, 1)
        factors = (1 + np.array(self.strengths) * (2 * shares - 1)).astype(np.float32)
        brightness, contrast, saturation = factors.T[:, :, np.newaxis, np.newaxis, np.newaxis]
        x = np.clip(brightness * pictures, 0, 255)
        weights = GREY if pictures.shape[3] == 3 else np.float32([1])
        mean = (x @ weights).mean(axis=(1, 2))[:, np.newaxis, np.newaxis, np.newaxis]
        x = np.clip(mean + contrast * (x - mean), 0, 255)
        grey = (x @ weights)[..., np.newaxis]
        return np.round(np.clip(grey + saturation * (x - grey), 0, 255)).astype(np.uint8)


class Mixing(PictureAugmentation):
    """What changes pictures by others of the split, and lets the labels of both count, by the share of each.

    Which other one it is follows from the draws alone, and not from what else is in the batch.

    Args:
        alpha: of the beta distribution that shares are drawn from: near 0 most pictures stay what they are, at 1 all
            shares are as likely.
    """

    added: ClassVar[dict[str, str]] = {"other_labels": "int32", "share": "float32"}
    """The labels of the other picture, and what those of the first one count for: feature -> type."""

    def __init__(self, shapes: Mapping[str, Shape], alpha: float):
        super().__init__(shapes)
        self.alpha = alpha

    def others(self, draw: Draws, num_examples: int) -> np.ndarray:
        """The row of the other picture for each of the batch, int64 [B]."""
        return draw.apart(0).integers(num_examples, 1)[:, 0]

    def mix(self, batch: Batch, others: Batch, draw: Draws) -> Batch:
        """A batch with the pictures of others in its own, and the features that are added."""
        from scipy.stats import beta

        uniform = draw.apart(1).bits(1)[:, 0] / np.float64(2.0**64)
        shares = beta.ppf(uniform, self.alpha, self.alpha)  # [B]
        mixed = {}
        for name, shape in self.shapes.items():
            pictures, other = (each[name].reshape(-1, *shape) for each in (batch, others))
            pictures, shares = self.mixed(pictures, other, shares, draw.apart(2))
            mixed[name] = pictures.reshape(batch[name].shape)
        return {**batch, **mixed, "other_labels": others["labels"], "share": shares[:, np.newaxis].astype(np.float32)}

    def mixed(
        self, pictures: np.ndarray, others: np.ndarray, shares: np.ndarray, draw: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pictures uint8 [B, H, W, D] and those that come in -> the mixed ones, and what is left of the first, [B]."""
        raise NotImplementedError


class MixUp(Mixing):
    r"""$\lambda x + (1 - \lambda) x'$. Reference: [Zhang et al., 2017](https://arxiv.org/abs/1710.09412)."""

    def mixed(
        self, pictures: np.ndarray, others: np.ndarray, shares: np.ndarray, draw: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        weight = shares.astype(np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
        return np.round(weight * pictures + (1 - weight) * others).astype(np.uint8), shares


class CutMix(Mixing):
    """A rectangle of the other picture, of the same shape as the whole and 1 - share of its area before what lies
    outside is cut off. Reference: [Yun et al., 2019](https://arxiv.org/abs/1905.04899)."""

    def mixed(
        self, pictures: np.ndarray, others: np.ndarray, shares: np.ndarray, draw: Draws
    ) -> tuple[np.ndarray, np.ndarray]:
        hit, side = [], np.sqrt(1 - shares)[:, np.newaxis]
        for extent, number in zip(pictures.shape[1:3], (0, 1), strict=True):
            length = np.round(extent * side).astype(np.int64)  # [B, 1]
            first = draw.apart(number).integers(extent, 1) - length // 2
            hit.append((np.arange(extent) >= first) & (np.arange(extent) < first + length))
        is_hit = hit[0][:, :, np.newaxis] & hit[1][:, np.newaxis, :]  # [B, H, W]
        return np.where(is_hit[..., np.newaxis], others, pictures), 1 - is_hit.mean(axis=(1, 2))
