"""Augmentation: what is changed follows from (seed, epoch, row) alone, and evaluation never sees it."""

from types import SimpleNamespace

import numpy as np
import pytest

from kerasllm.data.augmentation import AugmentedTraining, TokenDropout, build_augmentation
from kerasllm.data.batching import Accumulation, BatchStream
from kerasllm.data.draws import Draws, mix
from kerasllm.data.settings import (
    BatchingSettings,
    CutoutSettings,
    FlipSettings,
    ShiftSettings,
    TokenDropoutSettings,
)
from kerasllm.errors import UserError

TOKENIZER = SimpleNamespace(pad_id=0, start_id=1, end_id=2, unknown_id=3)
DROPOUT = TokenDropout(["a"], 0.4, TOKENIZER)


def test_the_drawn_numbers_are_the_same_on_every_machine_and_numpy_version():
    # The first outputs of splitmix64 that starts at 0, as its authors published it.
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    golden = 0x9E3779B97F4A7C15
    assert mix(np.array([0, golden, 2 * golden % 2**64], np.uint64)).tolist() == first
    draw = Draws(np.array([0, 7]), 1, 3)
    assert draw.bits(2).tolist() == BITS
    assert draw.integers(5, 4).tolist() == INTEGERS
    assert draw.chosen(0.5, 6).astype(int).tolist() == CHOSEN


# Worked out with Python's integers: mix(mix(mix(mix(0 ^ 1) ^ 3) ^ row) ^ position).
BITS = [[13965736782547169918, 14118033707823998252], [7231191357593247542, 9207345739640352189]]
INTEGERS = [[3, 3, 2, 3], [1, 2, 3, 3]]
CHOSEN = [[0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1]]


def test_numbers_are_uniform_and_differ_between_keys_rows_and_positions():
    rows = np.arange(2000)
    draw = Draws(rows, 5, 0)
    assert draw.chosen(0.2, 50).mean() == pytest.approx(0.2, abs=0.005)
    counts = np.bincount(draw.integers(7, 50).ravel(), minlength=7)
    np.testing.assert_allclose(counts / 100_000, 1 / 7, atol=0.005)
    tables = [draw, Draws(rows, 5, 1), Draws(rows, 6, 0), draw.apart(1)]
    drawn = [each.bits(50) for each in tables]
    assert len(np.unique(drawn)) == 4 * 2000 * 50, "no number twice, in any row or position"
    bits = drawn[0].view(np.uint8).reshape(2000, 50, 8)
    correlation = np.corrcoef(bits[..., 0].ravel(), np.roll(bits[..., 0], 1, axis=1).ravel())[0, 1]
    assert abs(correlation) < 0.01
    np.testing.assert_array_equal(Draws(rows[[3, 1]], 5, 0).bits(9), draw.bits(50)[[3, 1], :9])


def test_token_dropout_leaves_special_tokens_padding_and_other_features():
    tokens = np.tile(np.array([1, 9, 9, 9, 9, 9, 9, 9, 9, 2, 0, 0], np.int32), (500, 1))
    batch = {"a": tokens, "b": tokens.copy()}
    found = DROPOUT(batch, Draws(np.arange(500), 0))
    assert found["b"] is batch["b"]
    assert found["a"].dtype == np.int32
    changed = found["a"] != tokens
    assert set(found["a"][changed]) == {3}
    assert not changed[:, [0, 9, 10, 11]].any()
    assert changed[:, 1:9].mean() == pytest.approx(0.4, abs=0.02)
    assert (tokens[:, 1:9] == 9).all(), "what was given stays"


def test_two_features_lose_different_tokens():
    tokens = np.full((50, 20), 9, np.int32)
    found = TokenDropout(["a", "b"], 0.5, TOKENIZER)({"a": tokens, "b": tokens}, Draws(np.arange(50), 0))
    assert (found["a"] != found["b"]).mean() == pytest.approx(0.5, abs=0.1)


def stream(examples, num_replicas=1, micro_batches=1, augmentations=(DROPOUT,), tokens_per_batch=60, **options):
    settings = BatchingSettings(tokens_per_batch=tokens_per_batch, max_sequence_length=20)
    stream = BatchStream(examples, settings, 0, num_replicas, micro_batches)
    stream.augmentation = AugmentedTraining(augmentations, seed=4, **options)
    return stream


def rows_of(elements, feature="a"):
    """Every example, without its padding, in a fixed order; `a` may hold 3 at any place."""
    rows = [(part["b"][i], part[feature][i]) for element in elements for part in element for i in range(len(part["b"]))]
    return sorted((b[b > 0].tolist(), a[a > 0].tolist()) for b, a in rows if b.any())


@pytest.fixture
def examples(make_examples):
    return make_examples(np.random.default_rng(0).integers(4, 20, (30, 2)))


def elements_of(stream, steps):
    return list(stream.dataset().take(steps * stream.num_replicas).as_numpy_iterator())


@pytest.mark.parametrize(("num_replicas", "micro_batches"), [(2, 1), (1, 3), (2, 2)])
def test_the_same_however_the_batch_is_split(examples, num_replicas, micro_batches):
    whole, split = stream(examples), stream(examples, num_replicas, micro_batches)
    steps = whole.steps_in_epoch(0, 0)
    expected = rows_of(elements_of(whole, steps))
    assert rows_of(elements_of(split, steps)) == expected
    assert sum(3 in a for _, a in expected) > 20
    assert len({len(row) for row, _ in expected}) > 3


def test_a_row_is_changed_alike_in_every_batch_and_otherwise_in_another_epoch(examples):
    one, other = stream(examples), stream(examples, tokens_per_batch=150)  # the examples stand in other places
    other.accumulation = Accumulation(((0, 3),))
    steps = [each.steps_in_epoch(0, 0) for each in (one, other)]
    first, same = (rows_of(elements_of(each, num)) for each, num in zip((one, other), steps, strict=True))
    assert first == same
    one.seek(1, 0, steps[0])
    assert rows_of(elements_of(one, one.steps_in_epoch(1, steps[0]))) != first


def test_going_on_in_mid_epoch_changes_nothing(examples):
    straight = elements_of(stream(examples), 25)
    steps = stream(examples).steps_in_epoch(0, 0)
    assert 3 < steps < 20
    later = stream(examples)
    later.seek(1, 2, first_step=steps)
    for ours, theirs in zip(elements_of(later, 3), straight[steps + 2 :], strict=False):
        np.testing.assert_equal(ours, theirs)


def test_it_is_on_and_off_by_the_step_although_batches_are_made_ahead(examples):
    found = elements_of(stream(examples, changes=((0, False), (2, True), (5, False))), 7)
    plain = elements_of(stream(examples, augmentations=()), 7)
    assert [rows_of([a]) == rows_of([b]) for a, b in zip(found, plain, strict=True)] == [True] * 2 + [False] * 3 + [
        True
    ] * 2


def test_what_is_measured_is_never_changed(examples):
    changed, plain = stream(examples), stream(examples, augmentations=())
    for rows in plain.batches(0):
        np.testing.assert_equal(changed.parts(rows), plain.parts(rows))


def test_each_augmentation_draws_its_own_numbers(examples):
    tokens = {"a": np.full((20, 30), 9, np.int32)}
    twice = AugmentedTraining((DROPOUT, DROPOUT), seed=0)(tokens, np.arange(20), epoch=0, step=0)
    assert (twice["a"] == 3).mean() == pytest.approx(1 - 0.6**2, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "inputs", "message"),
    [
        (
            TokenDropoutSettings(name="token_dropout", rate=0.1),
            {"image": (8, 8, 1)},
            r"^token_dropout: changes tokens, and what this task lets be changed is image \(pictures\); leave it",
        ),
        (
            ShiftSettings(name="shift", pixels=1),
            {"a": "tokens"},
            r"^shift: changes pictures, and what .* is a \(tokens\); leave it",
        ),
        (FlipSettings(name="flip"), {}, "^flip: changes pictures, and what .* is none; leave it"),
        (
            ShiftSettings(name="shift", pixels=3),
            {"a": (3, 9, 1)},
            "^shift: 3 pixels are not less than the 3 of a side; take fewer",
        ),
        (
            CutoutSettings(name="cutout", size=4),
            {"a": (9, 4, 3)},
            "^cutout: 4 pixels are not less than the 4 of a side",
        ),
    ],
)
def test_augmentations_that_do_not_fit(settings, inputs, message):
    with pytest.raises(UserError, match=message):
        build_augmentation(settings, inputs, TOKENIZER)
