"""Training examples, changed a little in each epoch: how follows from (seed, epoch, row of the example) alone.

So an example is changed alike in one `fit` and in a run that goes on, on any number of replicas, in any micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kerasllm.data.draws import Batch, Draws
from kerasllm.data.padding import pad_batch
from kerasllm.data.picture_augmentation import (
    ColorJitter,
    CutMix,
    Cutout,
    Flip,
    Mixing,
    MixUp,
    PictureAugmentation,
    Shape,
    Shift,
)
from kerasllm.data.rand_augment import Grey, RandAugment, ResizedCrop, Rotation
from kerasllm.data.settings import (
    AugmentationSettings,
    CutMixSettings,
    CutoutSettings,
    FlipSettings,
    GreySettings,
    MixUpSettings,
    RandAugmentSettings,
    ResizedCropSettings,
    RotationSettings,
    ShiftSettings,
    TokenDropoutSettings,
)
from kerasllm.data.store import Examples
from kerasllm.errors import UserError


class Augmentation(Protocol):
    """Changes a planned batch, before it is split over replicas and micro-batches."""

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        """Feature -> [B, T], 0 at padding -> the same, of the same shapes; what it is given stays as it is."""


class TokenDropout:
    """Puts the unknown token in place of some tokens, so that the model has to look at the others.

    Args:
        features: those that are changed.
        rate: probability of each token, in (0, 1).
        tokenizer: whose special tokens and padding stay as they are.

    References: [Iyyer et al., 2015](https://doi.org/10.3115/v1/P15-1162), section 3.2;
    [Sennrich et al., 2016](https://arxiv.org/abs/1606.02891), section 2.4.
    """

    def __init__(self, features: Sequence[str], rate: float, tokenizer: Any):
        self.features, self.rate, self.unknown_id = features, rate, tokenizer.unknown_id
        self.special_ids = [tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id]

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        changed = {name: self._drop(batch[name], draw.apart(i)) for i, name in enumerate(self.features)}
        return {**batch, **changed}

    def _drop(self, token_ids: np.ndarray, draw: Draws) -> np.ndarray:
        dropped = draw.chosen(self.rate, token_ids.shape[1]) & ~np.isin(token_ids, self.special_ids)
        return np.where(dropped, np.int32(self.unknown_id), token_ids)


@dataclass(frozen=True)
class AugmentedTraining:
    """The augmentations of a run, in their order, and when they are on.

    Args:
        changes: (first step, whether they are on) in the order of the steps, the first at step 0.
        examples: of the split, where one of the augmentations takes others of them into an example.
    """

    augmentations: tuple[Augmentation, ...]
    seed: int
    changes: tuple[tuple[int, bool], ...] = ((0, True),)
    examples: Examples | None = None

    @property
    def added(self) -> dict[str, str]:
        """The features that are added to a batch, and their types."""
        return {
            name: dtype for each in self.augmentations if isinstance(each, Mixing) for name, dtype in each.added.items()
        }

    def is_on(self, step: int) -> bool:
        """Whether the step after `step` optimizer steps sees changed examples."""
        return next(is_on for first, is_on in reversed(self.changes) if first <= step)

    def __call__(self, batch: Batch, rows: np.ndarray, epoch: int, step: int) -> Batch:
        """A planned batch as the step after `step` optimizer steps sees it.

        Args:
            batch: feature -> [B, T].
            rows: the number of each example in its split, [B].
        """
        if self.is_on(step):
            return self._changed(batch, rows, epoch, len(self.augmentations))
        return {**batch, **self._unmixed(batch)}

    def _changed(self, batch: Batch, rows: np.ndarray, epoch: int, count: int) -> Batch:
        """A batch after the first augmentations, `count` of them."""
        batch = {**batch, **self._unmixed(batch)}
        for index, augmentation in enumerate(self.augmentations[:count]):
            draw = Draws(rows, self.seed, epoch, index)
            if isinstance(augmentation, Mixing):
                others = augmentation.others(draw, len(self.examples))
                other_batch = self._changed(pad_batch(self.examples.features, others), others, epoch, index)
                batch = augmentation.mix(batch, other_batch, draw)
            else:
                batch = augmentation(batch, draw)
        return batch

    def _unmixed(self, batch: Batch) -> Batch:
        """What mixing adds to a batch that is not mixed."""
        if not self.added:
            return {}
        return {"other_labels": batch["labels"], "share": np.ones([len(batch["labels"]), 1], np.float32)}


def build_augmentation(
    settings: AugmentationSettings, inputs: Mapping[str, str | Shape], tokenizer: Any
) -> Augmentation:
    """One augmentation of a recipe.

    Args:
        settings: an entry of `augmentation`.
        inputs: what the task lets be changed: feature -> `tokens`, or the height, width and channels of pictures.
        tokenizer: of the task, None without text.

    Raises:
        UserError: it does not fit the task or its pictures; the message begins with the name.
    """
    kind = "tokens" if isinstance(settings, TokenDropoutSettings) else "pictures"
    kinds = {name: what if isinstance(what, str) else "pictures" for name, what in inputs.items()}
    found = {name: what for name, what in inputs.items() if kinds[name] == kind}
    if not found:
        has = ", ".join(f"{name} ({what})" for name, what in kinds.items()) or "none"
        raise UserError(f"{settings.name}: changes {kind}, and what this task lets be changed is {has}; leave it")
    if isinstance(settings, TokenDropoutSettings):
        return TokenDropout(list(found), settings.rate, tokenizer)
    built = _build_picture_augmentation(settings, found)
    try:
        built.check()
    except UserError as error:
        raise UserError(f"{settings.name}: {error}") from error
    return built


def _build_picture_augmentation(settings: AugmentationSettings, shapes: Mapping[str, Shape]) -> PictureAugmentation:
    if isinstance(settings, FlipSettings):
        return Flip(shapes)
    if isinstance(settings, ShiftSettings):
        return Shift(shapes, settings.pixels, settings.padding)
    if isinstance(settings, CutoutSettings):
        return Cutout(shapes, settings.size)
    if isinstance(settings, MixUpSettings | CutMixSettings):
        return (MixUp if isinstance(settings, MixUpSettings) else CutMix)(shapes, settings.alpha)
    if isinstance(settings, RotationSettings):
        return Rotation(shapes, settings.degrees)
    if isinstance(settings, ResizedCropSettings):
        return ResizedCrop(shapes, settings.least_area)
    if isinstance(settings, GreySettings):
        return Grey(shapes, settings.rate)
    if isinstance(settings, RandAugmentSettings):
        return RandAugment(shapes, settings.num_changes, settings.magnitude)
    return ColorJitter(shapes, (settings.brightness, settings.contrast, settings.saturation))
