"""A built-in set of small images: handwritten digits of 8 by 8 pixels, which come with scikit-learn.

    {"image": b"\\x89PNG...", "label": "0", "name": "digits#123"}

Their 17 levels are spread over 0 (no ink) to 255. Source: E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test part, 1797 images).
"""

import random
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

from kerasllm.data.pictures import png_of
from kerasllm.data.source_settings import LABEL, NAME, PICTURE
from kerasllm.errors import UserError

SIZES = {"test": 300, "validation": 300, "train": 1197}
"""Images of each split; all splits together are the whole set."""


def generate_digits(split: str, num_records: int, seed: int) -> Iterator[dict[str, str | bytes]]:
    """Yield the first records of a split, each an image with its digit; the seed shuffles the set before it is split.

    Raises:
        UserError: the split has fewer images.
    """
    if num_records > SIZES[split]:
        raise UserError(f"data.{split}: {num_records} digits asked for, and there are {SIZES[split]}; lower it")
    digits = load_digits()
    order = list(range(len(digits.target)))
    random.Random(f"digits/{seed}").shuffle(order)
    splits = list(SIZES)
    start = sum(SIZES[each] for each in splits[: splits.index(split)])
    for index in order[start : start + num_records]:
        pixels = np.round(digits.images[index] * (255 / 16)).astype(np.uint8)
        yield {PICTURE: png_of(pixels), LABEL: str(digits.target[index]), NAME: f"digits#{index}"}
