"""Changes that Pillow makes, one picture after the other: crops, rotation, grey, RandAugment's choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from kerasllm.data.draws import Draws
from kerasllm.data.picture_augmentation import PictureAugmentation, Shape

Change = Callable[[Image.Image, float], Image.Image]


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Change:
    """A change that takes each pixel (x, y), seen from the middle, from a x + b y + c, d x + e y + f."""

    def change(picture: Image.Image, strength: float) -> Image.Image:
        a, b, c, d, e, f = matrix(strength)
        x, y = (picture.width - 1) / 2, (picture.height - 1) / 2
        moved = (a, b, c * picture.width + x - a * x - b * y, d, e, f * picture.height + y - d * x - e * y)
        return picture.transform(picture.size, Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)

    return change


def _enhanced(kind: Callable) -> Change:
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


def rotated(picture: Image.Image, degrees: float) -> Image.Image:
    """Around its middle, against the clock; what comes in is black."""
    return picture.rotate(degrees, Image.Resampling.BILINEAR)


CHANGES: dict[str, Change] = {
    "identity": lambda picture, strength: picture,
    "shear_x": _affine(lambda s: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": _affine(lambda s: (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": _affine(lambda s: (1, 0, 0.45 * s, 0, 1, 0)),
    "translate_y": _affine(lambda s: (1, 0, 0, 0, 1, 0.45 * s)),
    "rotate": lambda picture, strength: rotated(picture, 30 * strength),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda picture, strength: ImageOps.posterize(picture, 8 - round(4 * abs(strength))),
    "solarize": lambda picture, strength: ImageOps.solarize(picture, round(256 * (1 - abs(strength)))),
    "autocontrast": lambda picture, strength: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength: ImageOps.equalize(picture),
}
"""Name -> what makes another picture of one, by a strength from -1 to 1."""


class PillowAugmentation(PictureAugmentation):
    """What those share that go from picture to picture."""

    def change(self, pictures: np.ndarray, draw: Draws) -> np.ndarray:
        is_grey = pictures.shape[3] == 1
        changed = np.empty_like(pictures)
        for place, (pixels, bits) in enumerate(zip(pictures, draw.bits(self.num_draws), strict=True)):
            picture = Image.fromarray(pixels[:, :, 0] if is_grey else pixels)
            shares = bits / np.float64(2.0**64)
            changed[place] = np.asarray(self.change_one(picture, shares)).reshape(pixels.shape)
        return changed

    num_draws: int
    """Random numbers that a picture needs."""

    def change_one(self, picture: Image.Image, shares: np.ndarray) -> Image.Image:
        """A picture, and random numbers from 0 to 1, [num_draws] -> another picture of its size."""
        raise NotImplementedError


class Rotation(PillowAugmentation):
    """Turns each picture by up to `degrees` to either side; what comes in is 0."""

    num_draws = 1

    def __init__(self, shapes: Mapping[str, Shape], degrees: float):
        super().__init__(shapes)
        self.degrees = degrees

    def change_one(self, picture: Image.Image, shares: np.ndarray) -> Image.Image:
        return rotated(picture, self.degrees * (2 * shares[0] - 1))


class ResizedCrop(PillowAugmentation):
    """A part of each picture, of random size, shape and place, is taken for the whole.

    Args:
        least_area: share of the area, up to 1; its sides are as 3 to 4 up to 4 to 3.

    Reference: [Szegedy et al., 2014](https://arxiv.org/abs/1409.4842), section 6.
    """

    num_draws = 4

    def __init__(self, shapes: Mapping[str, Shape], least_area: float):
        super().__init__(shapes)
        self.least_area = least_area

    def change_one(self, picture: Image.Image, shares: np.ndarray) -> Image.Image:
        area = self.least_area + (1 - self.least_area) * shares[0]
        stretch = (4 / 3) ** (2 * shares[1] - 1)
        width, height = (min(1.0, (area * each) ** 0.5) for each in (stretch, 1 / stretch))
        left, top = (1 - width) * shares[2], (1 - height) * shares[3]
        box = [
            side * each for side, each in zip(2 * picture.size, (left, top, left + width, top + height), strict=True)
        ]
        return picture.resize(picture.size, Image.Resampling.BILINEAR, box)


class Grey(PillowAugmentation):
    """Takes the colours from some pictures.

    Args:
        rate: the share of them, 0 to 1.
    """

    num_draws = 1

    def __init__(self, shapes: Mapping[str, Shape], rate: float):
        super().__init__(shapes)
        self.rate = rate

    def change_one(self, picture: Image.Image, shares: np.ndarray) -> Image.Image:
        return picture.convert("L").convert(picture.mode) if shares[0] < self.rate else picture


class RandAugment(PillowAugmentation):
    """Makes some changes, drawn from `CHANGES`, one after the other, in either direction.

    Args:
        num_changes: how many.
        magnitude: 0 to 1, the strength of all of them.

    Reference: [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719); its magnitude goes from 0 to 30.
    """

    def __init__(self, shapes: Mapping[str, Shape], num_changes: int, magnitude: float):
        super().__init__(shapes)
        self.num_draws, self.magnitude = 2 * num_changes, magnitude

    def change_one(self, picture: Image.Image, shares: np.ndarray) -> Image.Image:
        changes = list(CHANGES.values())
        for chosen, direction in shares.reshape(-1, 2):
            strength = self.magnitude if direction < 0.5 else -self.magnitude
            picture = changes[int(chosen * len(changes))](picture, strength)
        return picture
