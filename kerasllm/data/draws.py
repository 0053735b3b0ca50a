"""Random numbers of the examples of a batch, which follow from a few keys and the row of each example alone."""

from __future__ import annotations

import numpy as np

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
