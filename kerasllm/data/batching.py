"""The batch plan: which examples form batch k of epoch e follows from (lengths, seed, e, k) alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kerasllm.data.augmentation import AugmentedTraining
from kerasllm.data.padding import pad_batch
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.store import Examples
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


@dataclass(frozen=True)
class Accumulation:
    """How many planned batches make one optimizer step.

    Args:
        changes: (first step, planned batches) in the order of the steps, the first at step 0.
    """

    changes: tuple[tuple[int, int], ...] = ((0, 1),)

    def at(self, step: int) -> int:
        """Planned batches that the step after `step` optimizer steps takes."""
        return next(count for first, count in reversed(self.changes) if first <= step)

    @property
    def greatest(self) -> int:
        """The most that any step takes."""
        return max(count for _, count in self.changes)

    def windows(self, num_batches: int, first_step: int) -> list[slice]:
        """The planned batches of each step of an epoch; the last step takes what is left."""
        windows = []
        while not windows or windows[-1].stop < num_batches:
            start = windows[-1].stop if windows else 0
            windows.append(slice(start, min(start + self.at(first_step + len(windows)), num_batches)))
        return windows


class Corruption(Protocol):
    """Changes the examples of a batch, always: what a task learns from, such as hidden tokens."""

    @property
    def added(self) -> dict[str, str]:
        """The features that it adds, and their types."""

    def __call__(self, batch: dict[str, np.ndarray], rows: np.ndarray, seed: int, epoch: int) -> dict[str, np.ndarray]:
        """Some examples [B, T], and the numbers of them in their split [B] -> the same with what is added, [B, P].

        What becomes of an example follows from (seed, epoch, row) alone, whatever else is in the batch.
        """


class BatchStream:
    """The training batches of a run, from any optimizer step on.

    The batches of one optimizer step are handed out as R consecutive elements, for a strategy that gives each of its R
    replicas one of them; where several processes share the work, each makes the elements of its own replicas. An
    element is a tuple of micro-batches, `accumulation.greatest * micro_batches` of them: each
    planned batch of the step gives every replica `micro_batches` parts. A part is filled up to its own longest row;
    one without an example, and those that a short last step of an epoch lacks, are one row of nothing but padding.

    Args:
        examples: a prepared split. Examples with a feature longer than `max_sequence_length` are left out and
            counted in `num_too_long`.
        seed: with the epoch it decides the order.
        num_replicas: R.
        micro_batches: parts that a replica takes its share of a planned batch in, one after the other.

    Attributes:
        accumulation: planned batches of each step; can be set before the first step is asked for.
        augmentation: changes what `dataset` gives, never what `parts` gives for evaluation; None changes nothing.
        corruption: changes all that is given. In `parts` it is that of epoch 0 and seed 0 each time, so that figures
            can be compared, those of other seeds too; None changes nothing.

    Raises:
        UserError: every example is too long.
    """

    def __init__(
        self,
        examples: Examples,
        settings: BatchingSettings,
        seed: int,
        num_replicas: int = 1,
        micro_batches: int = 1,
    ) -> None:
        self.num_replicas, self.micro_batches = num_replicas, micro_batches
        self.accumulation = Accumulation()
        self.augmentation: AugmentedTraining | None = None
        self.corruption: Corruption | None = None
        self.seed = seed
        self.examples, self._features = examples, examples.features
        self._position = (0, 0, 0)
        fits = examples.token_lengths.max(axis=1) <= settings.max_sequence_length
        self.num_too_long = int(np.sum(~fits))
        if not fits.any():
            raise UserError(
                f"batching.max_sequence_length: no example has at most {settings.max_sequence_length} tokens; raise it"
            )
        kept = np.flatnonzero(fits)
        lengths = examples.token_lengths[kept]

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
    def feature_types(self) -> dict[str, str]:
        """The keys of a batch, and the types of their numbers."""
        types = {name: array.values.dtype.name for name, array in self._features.items()}
        return types | (self.corruption.added if self.corruption else {})

    @property
    def trained_types(self) -> dict[str, str]:
        """The same of what is trained on, with what augmentation adds."""
        return self.feature_types | (self.augmentation.added if self.augmentation else {})

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The plan of an epoch: row numbers of every planned batch, in order."""
        return self._batches(epoch)

    def steps_in_epoch(self, epoch: int, first_step: int) -> int:
        """Optimizer steps of an epoch that begins after `first_step` of them."""
        return len(self.accumulation.windows(len(self.batches(epoch)), first_step))

    def seek(self, epoch: int, step_in_epoch: int, first_step: int) -> None:
        """Let the next iterator over `dataset()` start in this epoch, and go on from epoch to epoch.

        Args:
            epoch: from 0.
            step_in_epoch: optimizer steps of the epoch that are done.
            first_step: optimizer steps of the run before the epoch.
        """
        self._position = (epoch, step_in_epoch, first_step)

    def rows_of_step(self, epoch: int, step_in_epoch: int, first_step: int) -> np.ndarray:
        """The row numbers of all examples of a step; the arguments are those of `seek`."""
        return np.concatenate(self._window(epoch, step_in_epoch, first_step))

    def elements_of_step(
        self, epoch: int, step_in_epoch: int, first_step: int
    ) -> list[tuple[dict[str, np.ndarray], ...]]:
        """The R elements of a step, as `dataset` gives them; the arguments are those of `seek`."""
        window = self._window(epoch, step_in_epoch, first_step)
        return list(self._elements(window, epoch, first_step + step_in_epoch, range(self.num_replicas)))

    def _window(self, epoch: int, step_in_epoch: int, first_step: int) -> list[np.ndarray]:
        """The planned batches of a step."""
        batches = self.batches(epoch)
        return batches[self.accumulation.windows(len(batches), first_step)[step_in_epoch]]

    def parts(self, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
        """A planned batch as `num_replicas * micro_batches` padded parts, those of the first replica first."""
        return self._split(pad_batch(self._features, rows), rows, range(self.num_replicas), (0, 0))

    def _split(
        self, batch: dict[str, np.ndarray], rows: np.ndarray, replicas: range, keys: tuple[int, int]
    ) -> list[dict[str, np.ndarray]]:
        """The parts of some replicas; those of the others are not made. The keys are seed and epoch."""
        parts = np.array_split(np.arange(len(rows)), self.num_replicas * self.micro_batches)
        mine = parts[replicas.start * self.micro_batches : replicas.stop * self.micro_batches]
        return [
            self._corrupt(self._cut(batch, rows, part[0], part[-1] + 1), rows[part], keys)
            if len(part)
            else self._nothing(batch, rows)
            for part in mine
        ]

    def _cut(self, batch: dict[str, np.ndarray], rows: np.ndarray, start: int, stop: int) -> dict[str, np.ndarray]:
        """Some examples of a batch, without the columns that are padding in all of them."""
        longest = self.examples.lengths[rows[start:stop]].max(axis=0)
        part = {name: batch[name][start:stop, :end] for name, end in zip(self._features, longest, strict=True)}
        return part | {name: array[start:stop] for name, array in batch.items() if name not in part}

    def _corrupt(self, part: dict[str, np.ndarray], rows: np.ndarray, keys: tuple[int, int]) -> dict[str, np.ndarray]:
        return part if self.corruption is None else self.corruption(part, rows, *keys)

    def _nothing(self, batch: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        padding = {name: np.zeros_like(array) for name, array in self._cut(batch, rows, 0, 1).items()}
        return self._corrupt(padding, rows[:1], (0, 0))

    def _elements(
        self, window: list[np.ndarray], epoch: int, step: int, replicas: range
    ) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
        """The planned batches of the step after `step` optimizer steps, as an element for each of the replicas."""
        batches = [pad_batch(self._features, rows) for rows in window]
        if self.augmentation is not None:
            batches = [self.augmentation(batch, rows, epoch, step) for batch, rows in zip(batches, window, strict=True)]
        keys = (self.seed, epoch)
        parts = [self._split(batch, rows, replicas, keys) for batch, rows in zip(batches, window, strict=True)]
        missing = (self.accumulation.greatest - len(window)) * self.micro_batches
        nothing = (self._nothing(batches[0], window[0]),) * missing
        for replica in range(len(replicas)):
            mine = slice(replica * self.micro_batches, (replica + 1) * self.micro_batches)
            yield tuple(part for batch in parts for part in batch[mine]) + nothing

    def _generate(self, replicas: range) -> Iterator[tuple[dict[str, np.ndarray], ...]]:
        first_epoch, step_in_epoch, step = self._position
        for epoch in count(first_epoch):
            batches = self.batches(epoch)
            windows = self.accumulation.windows(len(batches), step)
            for number, window in enumerate(windows):
                if epoch > first_epoch or number >= step_in_epoch:
                    yield from self._elements(batches[window], epoch, step + number, replicas)
            step += len(windows)

    def dataset(self, process: int = 0, num_processes: int = 1) -> "tf.data.Dataset":
        """Elements without end, features [B, T], made ahead of use; starts where `seek` said before `iter`.

        Args:
            process: which of the processes that share the work this is; each has as many replicas, the first ones in
                the first process.
            num_processes: how many there are.
        """
        import tensorflow as tf

        share = self.num_replicas // num_processes
        replicas = range(process * share, (process + 1) * share)
        part = {name: tf.TensorSpec([None, None], dtype) for name, dtype in self.trained_types.items()}
        signature = (part,) * (self.accumulation.greatest * self.micro_batches)
        elements = tf.data.Dataset.from_generator(partial(self._generate, replicas), output_signature=signature)
        # Said to be endless: workers would otherwise ask each other before every step whether there is one more.
        elements = elements.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)).prefetch(4)
        # The thread that tunes a pipeline sleeps for up to a minute, and at times the end of training waits for it.
        options = tf.data.Options()
        options.autotune.enabled = False
        return elements.with_options(options)

    def distributed_dataset(self, strategy: "tf.distribute.Strategy") -> "tf.distribute.DistributedDataset":
        """The elements of `dataset`, one after the other for each replica of the strategy.

        For several replicas TensorFlow puts a further iterator behind each, with a tuning thread that cannot be
        switched off; a single one is served by the iterator of `dataset` itself.
        """
        import tensorflow as tf

        options = None
        if strategy.num_replicas_in_sync == 1:
            mode = tf.distribute.InputReplicationMode.PER_REPLICA
            options = tf.distribute.InputOptions(experimental_replication_mode=mode, experimental_fetch_to_device=False)
        return strategy.distribute_datasets_from_function(
            lambda context: self.dataset(context.input_pipeline_id, context.num_input_pipelines), options
        )
