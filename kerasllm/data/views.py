"""Two views of each picture, changed apart from each other: what a model learns from that has no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kerasllm.data.draws import Batch, Draws
from kerasllm.data.picture_augmentation import PictureAugmentation

OTHER = "other_"
"""What the name of the second view begins with."""


class TwoViews:
    """A `Corruption` that puts one view of a picture in its place, and adds another one.

    Both follow from (seed, epoch, row) alone.

    Args:
        augmentations: what makes a view, one after the other.
        names: the features with pictures.
    """

    def __init__(self, augmentations: Sequence[PictureAugmentation], names: Sequence[str]):
        self.augmentations, self.names = augmentations, names

    @property
    def added(self) -> Mapping[str, str]:
        """The second views, and their type."""
        return {f"{OTHER}{name}": "uint8" for name in self.names}

    def __call__(self, batch: Batch, rows: np.ndarray, seed: int, epoch: int) -> Batch:
        first, second = (self._view(batch, rows, seed, epoch, number) for number in (0, 1))
        return {**first, **{f"{OTHER}{name}": second[name] for name in self.names}}

    def _view(self, batch: Batch, rows: np.ndarray, seed: int, epoch: int, number: int) -> Batch:
        for index, augmentation in enumerate(self.augmentations):
            batch = augmentation(batch, Draws(rows, seed, epoch, number, index))
        return batch
