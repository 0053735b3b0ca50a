"""The batch plan: a pure function of lengths, seed and epoch; and the padded batches that it gives."""

import numpy as np
import pytest

from kerasllm.data.batching import Accumulation, BatchStream, pad_batch, plan_batches, plan_examples
from kerasllm.data.settings import BatchingSettings
from kerasllm.errors import UserError


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(1, 40, (500, 2))


def plan(lengths, **options):
    return [batch.tolist() for batch in plan_batches(lengths, tokens_per_batch=200, **options)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_example_once_within_the_budget(lengths, shuffle):
    batches = plan(lengths, shuffle=shuffle)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= 200


def test_repeats_from_its_seed_and_differs_between_epochs(lengths):
    first = plan(lengths, seed=1, epoch=0)
    assert plan(lengths.copy(), seed=1, epoch=0) == first
    assert plan(lengths, seed=1, epoch=1) != first
    assert plan(lengths, seed=2, epoch=0) != first


def test_the_order_is_the_same_on_every_machine_and_numpy_version():
    same_lengths = np.full((6, 1), 4)
    batches = plan_batches(same_lengths, tokens_per_batch=8, seed=7, epoch=3)
    assert [batch.tolist() for batch in batches] == [[3, 5], [2, 4], [1, 0]]


def test_equal_lengths_change_company_and_batches_change_places(lengths):
    epochs = [plan(lengths, epoch=epoch) for epoch in (0, 1)]
    company = [{frozenset(batch) for batch in batches} for batches in epochs]
    assert company[0] != company[1]
    longest = [[lengths[batch].max() for batch in batches] for batches in epochs]
    assert longest[0] != longest[1]
    assert sorted(longest[0]) == sorted(longest[1])


def test_without_shuffle_from_short_to_long():
    lengths = np.array([[3, 1], [1, 1], [2, 3], [3, 3], [1, 2]])
    assert [batch.tolist() for batch in plan_batches(lengths, tokens_per_batch=6, shuffle=False)] == [
        [1, 4],  # longest 1 and 2; a third one of longest 3 would cost 9
        [2, 0],
        [3],
    ]


def test_little_is_padded_in_both_features():
    random = np.random.default_rng(0)
    source = random.integers(5, 40, 5000)
    lengths = np.stack([source, source + random.integers(-3, 4, 5000)], axis=1)  # as translations are

    def share_of_padding(batches):
        return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max(axis=0).sum() for batch in batches)

    assert share_of_padding(plan_batches(lengths, tokens_per_batch=2000)) < 0.05
    assert share_of_padding(np.array_split(np.arange(5000), 100)) > 0.4


def test_corners():
    assert plan_batches(np.zeros((0, 2), int), tokens_per_batch=8) == []
    assert len(plan_batches(np.zeros((20, 1), int), tokens_per_batch=8)) == 3  # an empty example counts as one token
    with pytest.raises(ValueError, match="sequence of 9 tokens exceeds tokens_per_batch 8"):
        plan_batches(np.array([[9, 1]]), tokens_per_batch=8)


def test_batches_of_so_many_examples():
    batches = plan_examples(10, global_batch_size=4, seed=3, epoch=1)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches)) == list(range(10))
    assert np.concatenate(batches).tolist() != list(range(10))
    again = plan_examples(10, global_batch_size=4, seed=3, epoch=1)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]
    one_by_one = plan_examples(10, global_batch_size=1, seed=3, epoch=1)
    np.testing.assert_array_equal(np.concatenate(one_by_one), np.concatenate(batches))
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        assert np.concatenate(plan_examples(10, global_batch_size=4, **other)).tolist() != [*np.concatenate(batches)]


def test_a_stream_of_so_many_examples_leaves_out_the_long_ones(make_examples):
    lengths = [[2, 7], [3, 6], [9, 1], [1, 1], [5, 5]]
    stream = BatchStream(make_examples(lengths), BatchingSettings(global_batch_size=2, max_sequence_length=6), seed=0)
    assert [len(rows) for rows in stream.batches(0)] == [2, 1]
    assert sorted(np.concatenate(stream.batches(0))) == [1, 3, 4]


def test_pad_batch(make_examples):
    batch = pad_batch(make_examples([[2, 1], [0, 2], [3, 1]]).features, [2, 1, 0])
    assert batch["a"].tolist() == [[2001, 2002, 2003], [0, 0, 0], [1, 2, 0]]
    assert batch["b"].tolist() == [[2101, 0], [1101, 1102], [101, 0]]
    assert batch["a"].dtype == np.int32


def settings(tokens_per_batch=12, max_sequence_length=6):
    return BatchingSettings(tokens_per_batch=tokens_per_batch, max_sequence_length=max_sequence_length)


def test_too_long_examples_are_left_out_and_counted(make_examples):
    stream = BatchStream(make_examples([[2, 7], [3, 6], [9, 1], [1, 1]]), settings(), seed=0)
    assert stream.num_too_long == 2
    assert sorted(np.concatenate(stream.batches(0))) == [1, 3]
    with pytest.raises(UserError, match=r"batching\.max_sequence_length: no example has at most 6 tokens"):
        BatchStream(make_examples([[2, 7], [9, 1]]), settings(), seed=0)


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_parts_for_replicas_make_up_the_global_batch(make_examples, num_replicas):
    lengths = np.random.default_rng(0).integers(1, 6, (20, 2))
    examples = make_examples(lengths)
    stream = BatchStream(examples, settings(), seed=0, num_replicas=num_replicas)
    for rows in stream.batches(0):
        parts = list(stream.parts(rows))
        assert len(parts) == num_replicas
        found = [row[row > 0].tolist() for part in parts for row in part["a"] if row.any()]
        assert found == [examples.features["a"][row].tolist() for row in rows]
        for part in parts:
            if part["a"].any():
                assert part["a"].any(axis=0).all()  # filled up to its own longest row, not to that of the whole batch


def test_an_empty_part_is_one_row_of_padding(make_examples):
    stream = BatchStream(make_examples([[6, 2]]), settings(), seed=0, num_replicas=3)
    parts = list(stream.parts(stream.batches(0)[0]))
    assert [part["a"].shape for part in parts] == [(1, 6)] * 3
    assert parts[0]["a"].any()
    assert not any(array.any() for part in parts[1:] for array in part.values())


def rows_in(element):
    """The row numbers of all examples in an element: the first token of row r is 1000 * r + 1."""
    return sorted(int(row[0] // 1000) for part in element for row in part["a"] if row.any())


def test_dataset_starts_where_it_was_sought_and_goes_on_from_epoch_to_epoch(make_examples):
    lengths = np.random.default_rng(0).integers(1, 6, (30, 2))
    stream = BatchStream(make_examples(lengths), settings(), seed=0)
    assert stream.feature_types == {"a": "int32", "b": "int32"}
    dataset = stream.dataset()

    def planned(epoch, first_batch=0):
        return [sorted(rows) for rows in stream.batches(epoch)[first_batch:]]

    assert [rows_in(element) for element in dataset.take(1).as_numpy_iterator()] == planned(0)[:1]
    stream.seek(2, 3, first_step=0)
    expected = planned(2, 3) + planned(3) + planned(4)
    elements = dataset.take(len(expected)).as_numpy_iterator()
    first = next(elements)
    stream.seek(0, 0, first_step=0)  # does not touch the iterator that is under way
    assert [rows_in(element) for element in [first, *elements]] == expected
    assert first[0]["b"].dtype == np.int32


def test_nothing_tunes_the_pipeline(make_examples):
    """TensorFlow's tuning thread sleeps for up to 60 s, and at times the end of an iterator waits for it."""
    stream = BatchStream(make_examples([[1, 1]] * 4), settings(), 0)
    assert stream.dataset().options().autotune.enabled is False


def test_windows_take_every_planned_batch_and_grow_at_their_step():
    accumulation = Accumulation(((0, 1), (2, 3)))
    assert accumulation.windows(7, first_step=0) == [slice(0, 1), slice(1, 2), slice(2, 5), slice(5, 7)]
    assert accumulation.windows(7, first_step=4) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert accumulation.greatest == 3


@pytest.mark.parametrize(("num_replicas", "micro_batches"), [(1, 1), (2, 2)])
def test_accumulated_batches_make_one_step(make_examples, num_replicas, micro_batches):
    """Every example once an epoch, the short last step of an epoch too; sought or not, the steps are the same."""
    lengths = np.random.default_rng(0).integers(1, 6, (30, 2))
    stream = BatchStream(make_examples(lengths), settings(), 0, num_replicas, micro_batches)
    stream.accumulation = Accumulation(((0, 2), (3, 4)))
    steps = [stream.steps_in_epoch(0, 0)]
    steps.append(stream.steps_in_epoch(1, steps[0]))
    total = sum(steps) * num_replicas
    elements = list(stream.dataset().take(total).as_numpy_iterator())
    assert {len(element) for element in elements} == {4 * micro_batches}
    joined = [
        sorted(row for element in elements[i : i + num_replicas] for row in rows_in(element))
        for i in range(0, total, num_replicas)
    ]
    assert sorted(row for step in joined[: steps[0]] for row in step) == list(range(30))
    batches = stream.batches(0)
    assert joined[0] == sorted(row for rows in batches[:2] for row in rows)
    assert joined[3] == sorted(row for rows in batches[6:10] for row in rows)
    stream.seek(1, 1, first_step=steps[0])
    rest = stream.dataset().take(total - num_replicas * (steps[0] + 1)).as_numpy_iterator()
    expected = elements[(steps[0] + 1) * num_replicas :]
    assert [rows_in(element) for element in rest] == [rows_in(element) for element in expected]


@pytest.mark.parametrize(("num_processes", "micro_batches"), [(2, 1), (2, 3), (4, 2)])
def test_processes_share_the_replicas_of_each_step(make_examples, num_processes, micro_batches):
    """Put together again step by step, what the processes make is what a single one makes for all four replicas."""
    lengths = np.random.default_rng(0).integers(1, 6, (30, 2))

    def elements(process, processes):
        stream = BatchStream(make_examples(lengths), settings(), 0, 4, micro_batches)
        stream.accumulation = Accumulation(((0, 1), (2, 2)))
        return list(stream.dataset(process, processes).take(24 // processes).as_numpy_iterator())

    share = 4 // num_processes
    shares = [elements(process, num_processes) for process in range(num_processes)]
    joined = [element for step in range(6) for mine in shares for element in mine[step * share : (step + 1) * share]]
    for ours, theirs in zip(joined, elements(0, 1), strict=True):
        for part, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part["a"], other["a"])
            np.testing.assert_array_equal(part["b"], other["b"])
