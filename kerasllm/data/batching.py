"""The batch plan: which examples form batch k of epoch e follows from (lengths, seed, e, k) alone."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from kerasllm.data.settings import BatchingSettings
from kerasllm.data.store import Examples, RaggedArray
from kerasllm.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf


def _random_keys(num_keys: int, *seeds: int) -> np.ndarray:
    """uint64 [num_keys] to sort by; raw bits, because NumPy keeps only these the same across its versions."""
    return np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(num_keys)


def _split_by_budget(longest: np.ndarray, tokens_per_batch: int) -> list[slice]:
    """Cut ascending lengths into the fewest runs with `examples * longest <= tokens_per_batch`."""
    runs = []
    start = 0
    while start < len(longest):
        window = longest[start : start + tokens_per_batch // longest[start]]
        cost = np.arange(1, len(window) + 1) * window
        stop = start + int(np.searchsorted(cost, tokens_per_batch, side="right"))
        runs.append(slice(start, stop))
        start = stop
    return runs


def plan_examples(num_examples: int, *, global_batch_size: int, seed: int = 0, epoch: int = 0) -> list[np.ndarray]:
    """Put every example into exactly one batch, with others that (seed, epoch) choose; the last may be smaller."""
    order = np.argsort(_random_keys(num_examples, seed, epoch), kind="stable")
    return [order[start : start + global_batch_size] for start in range(0, num_examples, global_batch_size)]


def plan_batches(
    lengths: np.ndarray, *, tokens_per_batch: int, seed: int = 0, epoch: int = 0, shuffle: bool = True
) -> list[np.ndarray]:
    """Put every example into exactly one batch, together with others of similar length.

    Examples are sorted by their longest feature, then by the other ones, so that little is padded in any of them;
    which of several equal ones stand together, and the order of the batches, follows from (seed, epoch).

    Args:
        lengths: int [N, F], the length of every feature in tokens, none longer than `tokens_per_batch`.
        tokens_per_batch: upper bound of number of examples * longest sequence of any feature.
        shuffle: False keeps the batches from short to long, without randomness.

    Returns:
        The batches as int64 arrays of row numbers.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) == 0:
        return []
    longest = np.maximum(lengths.max(axis=1), 1)
    if longest.max() > tokens_per_batch:
        raise ValueError(f"a sequence of {longest.max()} tokens exceeds tokens_per_batch {tokens_per_batch}")
    ties = _random_keys(len(lengths), seed, epoch) if shuffle else np.arange(len(lengths))
    order = np.lexsort([ties, *lengths.T[::-1], longest])
    batches = [order[run] for run in _split_by_budget(longest[order], tokens_per_batch)]
    if shuffle:
        batches = [batches[i] for i in np.argsort(_random_keys(len(batches), seed, epoch, 1), kind="stable")]
    return batches


def pad_rows(array: RaggedArray, rows: np.ndarray) -> np.ndarray:
    """int32 [B, T]: the rows, filled up with 0 to the longest of them."""
    starts = array.offsets[rows]
    lengths = array.offsets[rows + 1] - starts
    positions = np.arange(lengths.max(initial=0))
    padded = np.zeros((len(rows), len(positions)), np.int32)
    mask = positions < lengths[:, None]
    padded[mask] = array.values[(starts[:, None] + positions)[mask]]
    return padded


def pad_batch(features: Mapping[str, RaggedArray], rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Feature -> int32 [B, T], each filled up with 0 to its own longest row."""
    rows = np.asarray(rows, np.int64)
    return {name: pad_rows(array, rows) for name, array in features.items()}


class BatchStream:
    """The training batches of a run, from any (epoch, batch) on.

    With R replicas every global batch is handed out as R consecutive parts, for a strategy that gives each replica one
    of them. A part is filled up to its own longest row; where there are fewer examples than replicas, the empty parts
    become one row of nothing but padding.

    Args:
        examples: a prepared split. Examples with a feature longer than `max_sequence_length` are left out and
            counted in `num_too_long`.
        seed: with the epoch it decides the order.

    Raises:
        UserError: every example is too long.
    """

    def __init__(self, examples: Examples, settings: BatchingSettings, seed: int, num_replicas: int = 1) -> None:
        self.num_replicas = num_replicas
        self._features = examples.features
        self._position = (0, 0)
        fits = examples.lengths.max(axis=1) <= settings.max_sequence_length
        self.num_too_long = int(np.sum(~fits))
        if not fits.any():
            raise UserError(
                f"batching.max_sequence_length: no example has at most {settings.max_sequence_length} tokens; raise it"
            )
        kept = np.flatnonzero(fits)
        lengths = examples.lengths[kept]

        @lru_cache(maxsize=2)
        def batches(epoch: int) -> list[np.ndarray]:
            if settings.global_batch_size is not None:
                size = settings.global_batch_size
                plan = plan_examples(len(kept), global_batch_size=size, seed=seed, epoch=epoch)
            else:
                plan = plan_batches(lengths, tokens_per_batch=settings.tokens_per_batch, seed=seed, epoch=epoch)
            return [kept[rows] for rows in plan]

        self._batches = batches

    @property
    def feature_names(self) -> list[str]:
        """The keys of a batch."""
        return list(self._features)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The plan of an epoch: row numbers of every global batch, in order."""
        return self._batches(epoch)

    def steps_in_epoch(self, epoch: int) -> int:
        """Number of global batches."""
        return len(self.batches(epoch))

    def seek(self, epoch: int, first_batch: int = 0) -> None:
        """Let the next iterator over `dataset()` start with this batch of this epoch and go on from epoch to epoch."""
        self._position = (epoch, first_batch)

    def parts(self, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """One global batch as `num_replicas` padded parts."""
        for part in np.array_split(rows, self.num_replicas):
            if len(part):
                yield pad_batch(self._features, part)
            else:
                first_row = pad_batch(self._features, rows[:1])
                yield {name: np.zeros_like(array) for name, array in first_row.items()}

    def _generate(self) -> Iterator[dict[str, np.ndarray]]:
        first_epoch, first_batch = self._position
        for epoch in count(first_epoch):
            for rows in self.batches(epoch)[first_batch if epoch == first_epoch else 0 :]:
                yield from self.parts(rows)

    def dataset(self) -> "tf.data.Dataset":
        """Feature -> int32 [B, T], without end, padded ahead of use; it starts where `seek` said before `iter`."""
        import tensorflow as tf

        signature = {name: tf.TensorSpec([None, None], tf.int32) for name in self._features}
        return tf.data.Dataset.from_generator(self._generate, output_signature=signature).prefetch(4)
