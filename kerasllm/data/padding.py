"""Rows of unequal length, filled up with 0 to the longest of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from kerasllm.data.store import RaggedArray


def pad_rows(array: RaggedArray, rows: np.ndarray) -> np.ndarray:
    """[B, T]: the rows, filled up with 0 to the longest of them."""
    starts = array.offsets[rows]
    lengths = array.offsets[rows + 1] - starts
    positions = np.arange(lengths.max(initial=0))
    padded = np.zeros((len(rows), len(positions)), array.values.dtype.newbyteorder("="))
    mask = positions < lengths[:, None]
    padded[mask] = array.values[(starts[:, None] + positions)[mask]]
    return padded


def pad_batch(features: Mapping[str, RaggedArray], rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Feature -> [B, T], each filled up with 0 to its own longest row."""
    rows = np.asarray(rows, np.int64)
    return {name: pad_rows(array, rows) for name, array in features.items()}
