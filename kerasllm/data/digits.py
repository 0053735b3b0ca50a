"""A built-in set of small images: handwritten digits of 8 by 8 pixels, which come with scikit-learn.

    {"image": "0 0 5 13 9 1 0 0 0 0 13 15 ...", "label": "0"}

The 64 pixels stand row by row, as numbers from 0 (white) to 16 (black). Source: E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test part, 1797 images).
"""

import random
from collections.abc import Iterator

from sklearn.datasets import load_digits

from kerasllm.errors import UserError

SIZES = {"test": 300, "validation": 300, "train": 1197}
"""Images of each split; all splits together are the whole set."""


def generate_digits(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
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
        pixels = " ".join(str(int(pixel)) for pixel in digits.data[index])
        yield {"image": pixels, "label": str(digits.target[index])}
