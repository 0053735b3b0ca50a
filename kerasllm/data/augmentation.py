"""Training examples, changed a little in each epoch: how follows from (seed, epoch, row of the example) alone.

So an example is changed alike in one `fit` and in a run that goes on, on any number of replicas, in any micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from kerasllm.data.settings import AugmentationSettings, CutoutSettings, ShiftSettings, TokenDropoutSettings
from kerasllm.data.store import Examples
from kerasllm.errors import UserError

Batch = dict[str, np.ndarray]


def mix(bits: np.ndarray) -> np.ndarray:
    """uint64 [...] -> as many that look random: a bijection in which each bit of the input changes half of the output.

    Reference: splitmix64, [Steele et al., 2014](https://doi.org/10.1145/2660193.2660195).
    """
    bits = np.asarray(bits, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class Draws:
    """Random numbers of the examples of a batch: each follows from the keys, its row and its position alone.

    Args:
        rows: integers [B], the number of each example in its split.
        keys: integers, such as the seed and the epoch.
    """

    def __init__(self, rows: np.ndarray, *keys: int):
        self._states = np.zeros([len(rows)], np.uint64)
        for key in (*(np.uint64(key % 2**64) for key in keys), np.asarray(rows).astype(np.uint64)):
            self._states = mix(self._states ^ key)

    def apart(self, number: int) -> Draws:
        """Other random numbers of the same examples."""
        return Draws(self._states, number)

    def bits(self, num: int) -> np.ndarray:
        """uint64 [B, num]."""
        return mix(self._states[:, np.newaxis] ^ np.arange(num, dtype=np.uint64))

    def chosen(self, rate: float, num: int) -> np.ndarray:
        """bool [B, num], each true with probability `rate` in [0, 1)."""
        return self.bits(num) < np.uint64(int(rate * 2.0**64))

    def integers(self, bound: int, num: int) -> np.ndarray:
        """int64 [B, num], each uniform in [0, bound), for a bound below 2 ** 32."""
        return (((self.bits(num) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


class Augmentation(Protocol):
    """Changes a planned batch, before it is split over replicas and micro-batches."""

    kind: ClassVar[str]
    """Of the features that it changes, as the task says in `augmented_inputs`."""

    def check(self, examples: Examples) -> None:
        """Raises UserError, without a place, if examples cannot be changed like that."""

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        """Feature -> int32 [B, T], 0 at padding -> the same, of the same shapes; what it is given stays as it is."""


class TokenDropout:
    """Puts the unknown token in place of some tokens, so that the model has to look at the others.

    Args:
        features: those that are changed.
        rate: probability of each token, in (0, 1).
        tokenizer: whose special tokens and padding stay as they are.

    References: [Iyyer et al., 2015](https://doi.org/10.3115/v1/P15-1162), section 3.2;
    [Sennrich et al., 2016](https://arxiv.org/abs/1606.02891), section 2.4.
    """

    kind = "tokens"

    def __init__(self, features: Sequence[str], rate: float, tokenizer: Any):
        self.features, self.rate, self.unknown_id = features, rate, tokenizer.unknown_id
        self.special_ids = [tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.unknown_id]

    def check(self, examples: Examples) -> None:
        """Any tokens will do."""

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        changed = {name: self._drop(batch[name], draw.apart(i)) for i, name in enumerate(self.features)}
        return {**batch, **changed}

    def _drop(self, token_ids: np.ndarray, draw: Draws) -> np.ndarray:
        dropped = draw.chosen(self.rate, token_ids.shape[1]) & ~np.isin(token_ids, self.special_ids)
        return np.where(dropped, np.int32(self.unknown_id), token_ids)


class ImageAugmentation:
    """What those of square images share, whose pixels stand row by row: int32 [B, side * side].

    Args:
        features: those that are changed.
        reach: pixels; the side must be longer.
    """

    kind: ClassVar[str] = "image"

    def __init__(self, features: Sequence[str], reach: int):
        self.features, self.reach = features, reach

    def check(self, examples: Examples) -> None:
        for name in self.features:
            lengths = np.unique(examples.features[name].lengths)
            side = math.isqrt(int(lengths[0]))
            if len(lengths) > 1 or side * side != lengths[0]:
                raise UserError(f"needs square images, and {name} has {lengths[0]} to {lengths[-1]} numbers; leave it")
            if self.reach >= side:
                raise UserError(f"{self.reach} pixels are not less than the {side} of a side; take fewer")

    def __call__(self, batch: Batch, draw: Draws) -> Batch:
        return {**batch, **{name: self._change_rows(batch[name], draw) for name in self.features}}

    def _change_rows(self, rows: np.ndarray, draw: Draws) -> np.ndarray:
        side = math.isqrt(rows.shape[1])
        return self.change(rows.reshape(-1, side, side), draw).reshape(rows.shape)

    def change(self, images: np.ndarray, draw: Draws) -> np.ndarray:
        """Images [B, side, side] -> the same shape; overridden by each augmentation."""
        raise NotImplementedError


class Shift(ImageAugmentation):
    """Moves each image by 0 to `reach` pixels up or down, and as many left or right; what comes in is 0."""

    def change(self, images: np.ndarray, draw: Draws) -> np.ndarray:
        side = images.shape[1]
        moves = draw.integers(2 * self.reach + 1, 2) - self.reach  # [B, 2]: down, right
        came_from = np.arange(side) - moves[:, :, np.newaxis]  # [B, 2, side]
        inside = (came_from >= 0) & (came_from < side)
        came_from = np.clip(came_from, 0, side - 1)
        examples = np.arange(len(images))[:, np.newaxis, np.newaxis]
        moved = images[examples, came_from[:, 0, :, np.newaxis], came_from[:, 1, np.newaxis, :]]
        return moved * (inside[:, 0, :, np.newaxis] & inside[:, 1, np.newaxis, :])


class Cutout(ImageAugmentation):
    """Sets a square of `reach` by `reach` pixels around a pixel of each image to 0, as far as it lies inside.

    Reference: [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552).
    """

    def change(self, images: np.ndarray, draw: Draws) -> np.ndarray:
        side = images.shape[1]
        first = draw.integers(side, 2)[:, :, np.newaxis] - self.reach // 2  # [B, 2, 1]: top, left
        hit = (np.arange(side) >= first) & (np.arange(side) < first + self.reach)  # [B, 2, side]
        return images * ~(hit[:, 0, :, np.newaxis] & hit[:, 1, np.newaxis, :])


@dataclass(frozen=True)
class AugmentedTraining:
    """The augmentations of a run, in their order, and when they are on.

    Args:
        changes: (first step, whether they are on) in the order of the steps, the first at step 0.
    """

    augmentations: tuple[Augmentation, ...]
    seed: int
    changes: tuple[tuple[int, bool], ...] = ((0, True),)

    def is_on(self, step: int) -> bool:
        """Whether the step after `step` optimizer steps sees changed examples."""
        return next(is_on for first, is_on in reversed(self.changes) if first <= step)

    def __call__(self, batch: Batch, rows: np.ndarray, epoch: int, step: int) -> Batch:
        """A planned batch as the step after `step` optimizer steps sees it.

        Args:
            batch: feature -> int32 [B, T].
            rows: the number of each example in its split, [B].
        """
        for index, augmentation in enumerate(self.augmentations if self.is_on(step) else ()):
            batch = augmentation(batch, Draws(rows, self.seed, epoch, index))
        return batch


def build_augmentation(
    settings: AugmentationSettings, inputs: Mapping[str, str], tokenizer: Any, examples: Examples
) -> Augmentation:
    """One augmentation of a recipe.

    Args:
        settings: an entry of `augmentation`.
        inputs: feature -> kind, `tokens` or `image`, of what the task lets be changed.
        tokenizer: of the task, None without text.
        examples: that are trained on.

    Raises:
        UserError: it does not fit the task or its examples; the message begins with the name.
    """
    classes = {TokenDropoutSettings: TokenDropout, ShiftSettings: Shift, CutoutSettings: Cutout}
    cls = classes[type(settings)]
    features = [name for name, kind in inputs.items() if kind == cls.kind]
    if not features:
        has = ", ".join(f"{name} ({kind})" for name, kind in inputs.items()) or "none"
        raise UserError(f"{settings.name}: changes {cls.kind}, and what this task lets be changed is {has}; leave it")
    if isinstance(settings, TokenDropoutSettings):
        built: Augmentation = TokenDropout(features, settings.rate, tokenizer)
    else:
        built = cls(features, settings.pixels if isinstance(settings, ShiftSettings) else settings.size)
    try:
        built.check(examples)
    except UserError as error:
        raise UserError(f"{settings.name}: {error}") from error
    return built
