"""Hidden tokens: counts, kinds and shares by hand and by statistics; and the same ones however a batch is split."""

from collections import Counter

import numpy as np
import pytest

from kerasllm.data.batching import BatchStream
from kerasllm.data.draws import Draws
from kerasllm.data.masking import (
    LABELS,
    LONGEST_SPAN,
    POSITIONS,
    Masking,
    choose_spans,
    choose_tokens,
    choose_words,
    gather_labels,
    masks_per_row,
    replace_tokens,
    word_starts,
)
from kerasllm.data.settings import BatchingSettings

VOCABULARY, SPECIAL, MASK = 200, (0, 1, 2, 3, 4), 4
GOES_ON = np.arange(VOCABULARY) >= 100
"""Tokens 5 to 99 begin a word, those from 100 on go on with it."""
KINDS = ("token", "whole_word", "span")


def masking(kind="token", share=0.15, shares=(0.8, 0.1)):
    return Masking(kind, share, 3.0, shares, MASK, SPECIAL, GOES_ON)


def sequences(num_rows=400, length=60, seed=0):
    """START, tokens, END and, in the later rows more and more, padding."""
    generator = np.random.default_rng(seed)
    token_ids = generator.integers(3, VOCABULARY, (num_rows, length)).astype(np.int32)
    lengths = np.linspace(length, 3, num_rows).astype(int)
    token_ids[:, 0] = 1
    token_ids[np.arange(num_rows), lengths - 1] = 2
    return np.where(np.arange(length) < lengths[:, None], token_ids, 0).astype(np.int32)


def hidden_in(token_ids, found):
    """bool [B, T], from the positions."""
    hidden = np.zeros(token_ids.shape, bool)
    rows, columns = np.nonzero(found[LABELS])
    hidden[rows, found[POSITIONS][rows, columns]] = True
    return hidden


def test_counts_are_rounded_and_at_least_one():
    maskable = np.arange(30) < np.array([[0], [1], [3], [10], [13], [14], [17], [30]])
    # 0.15 times 10, 13, 14, 17 and 30 are 1.5, 1.95, 2.1, 2.55 and 4.5
    assert masks_per_row(maskable, 0.15).tolist() == [0, 1, 1, 2, 2, 2, 3, 5]


def test_words_by_hand():
    #                    [CLS] dog ##s  cat [SEP] ##x ##y  run [pad]
    goes_on = np.array([[0, 0, 1, 0, 0, 1, 1, 0, 0]], bool)
    maskable = np.array([[0, 1, 1, 1, 0, 1, 1, 1, 0]], bool)
    assert word_starts(maskable, goes_on).tolist() == [[0, 1, 1, 3, 4, 5, 5, 7, 8]]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_stay_and_labels_are_what_stood_there(kind):
    token_ids = sequences()
    found = masking(kind)({"token_ids": token_ids, "other": token_ids}, np.arange(len(token_ids)), 7, 2)
    hidden = hidden_in(token_ids, found)
    assert found["other"] is token_ids
    assert not hidden[np.isin(token_ids, SPECIAL)].any()
    assert hidden.sum() == (found[LABELS] != 0).sum(), "no position twice"
    np.testing.assert_array_equal(found["token_ids"][~hidden], token_ids[~hidden])
    rows, columns = np.nonzero(found[LABELS])
    np.testing.assert_array_equal(found[LABELS][rows, columns], token_ids[rows, found[POSITIONS][rows, columns]])
    assert (found[POSITIONS][found[LABELS] == 0] == 0).all()
    assert not np.isin(found["token_ids"][hidden], [0, 1, 2, 3]).any()
    counts = masks_per_row(~np.isin(token_ids, SPECIAL), 0.15)
    if kind == "whole_word":
        assert (hidden.sum(axis=1)[counts > 2] <= counts[counts > 2]).mean() > 0.99
        assert hidden.sum() == pytest.approx(counts.sum(), rel=0.1)
        assert (hidden.any(axis=1) == (counts > 0)).all()
    else:
        np.testing.assert_array_equal(hidden.sum(axis=1), counts)


def test_shares_of_what_stands_there():
    token_ids = sequences(4000)
    found = masking()({"token_ids": token_ids}, np.arange(4000), 0, 0)
    hidden = hidden_in(token_ids, found)
    before, after = token_ids[hidden], found["token_ids"][hidden]
    assert (after == MASK).mean() == pytest.approx(0.8, abs=0.01)
    changed = (after != MASK) & (after != before)
    assert changed.mean() == pytest.approx(0.1 * (1 - 1 / 195), abs=0.01)
    assert len(np.unique(after[changed])) == VOCABULARY - len(SPECIAL), "any other token may come"
    always = masking(shares=(1.0, 0.0))({"token_ids": token_ids}, np.arange(4000), 0, 0)["token_ids"]
    assert (always[hidden] == MASK).all()
    never = masking(shares=(0.0, 0.0))({"token_ids": token_ids}, np.arange(4000), 0, 0)["token_ids"]
    np.testing.assert_array_equal(never, token_ids)


def test_each_token_is_as_likely_and_each_epoch_has_others():
    token_ids = np.full((3000, 12), 9, np.int32)
    token_ids[:, 0] = 1
    draws = [Draws(np.arange(3000), 0, epoch) for epoch in (0, 1)]
    first, second = (choose_tokens(token_ids != 1, np.full(3000, 3), draw) for draw in draws)
    np.testing.assert_allclose(first.mean(axis=0)[1:], 3 / 11, atol=0.03)
    assert not first[:, 0].any()
    assert (first & second).sum() / first.sum() == pytest.approx(3 / 11, abs=0.03)


def test_whole_words_are_hidden_whole():
    token_ids = sequences(300)
    maskable = ~np.isin(token_ids, SPECIAL)
    starts = word_starts(maskable, GOES_ON[token_ids])
    counts = masks_per_row(maskable, 0.3)
    chosen = choose_words(maskable, starts, counts, Draws(np.arange(300), 1))
    for row in range(300):
        words = {start: np.flatnonzero((starts[row] == start) & maskable[row]) for start in starts[row][maskable[row]]}
        assert all(chosen[row, word].all() or not chosen[row, word].any() for word in words.values())
        sizes = [len(word) for start, word in words.items() if chosen[row, word[0]]]
        left = [len(word) for start, word in words.items() if not chosen[row, word[0]]]
        assert sum(sizes) <= counts[row] or len(sizes) == 1
        assert all(sum(sizes) + size > counts[row] for size in left), "another word would fit"


def test_spans_by_hand():
    class Fixed:
        """Positions are tried from the last to the first, and each span would have four tokens."""

        def apart(self, number):
            return Fixed.Lengths()

        def bits(self, num):
            return np.arange(num, 0, -1, dtype=np.uint64)[None] << np.uint64(8)

        class Lengths:
            def bits(self, num):
                # P(length <= 3) = 1 - (2/3)^3 = 0.704, P(length <= 4) = 0.802
                return np.full((1, num), int(0.75 * 2**64), np.uint64)

    maskable = np.array([[0, 1, 1, 1, 1, 1, 0, 1, 1, 1]], bool)
    starts = np.array([[0, 1, 1, 3, 4, 5, 6, 7, 7, 9]])
    chosen, spans = choose_spans(maskable, starts, np.array([5]), 3.0, Fixed())
    # From 9 on one token; from 7 on those before it; 2 are left from 5 on, of which one is before the end.
    assert np.flatnonzero(chosen).tolist() == [4, 5, 7, 8, 9]
    assert spans[chosen].tolist() == [4, 5, 7, 7, 9]


def test_lengths_of_spans_are_geometric():
    token_ids = np.full((4000, 400), 9, np.int32)  # each token a word, long rows: spans hardly ever meet
    maskable = np.ones_like(token_ids, bool)
    starts = np.tile(np.arange(400), (4000, 1))
    chosen, spans = choose_spans(maskable, starts, np.full(4000, 12), 3.0, Draws(np.arange(4000), 0))
    lengths = Counter()
    for row in range(4000):
        at = np.flatnonzero(chosen[row])
        found = Counter(spans[row, at].tolist())
        assert all(set(range(start, start + size)) <= set(at.tolist()) for start, size in found.items()), "contiguous"
        lengths.update(found.values())
    total = sum(lengths.values())
    assert max(lengths) <= LONGEST_SPAN
    # The last span of a row is cut, so that short ones are a little more frequent.
    assert lengths[1] / total == pytest.approx(1 / 3, abs=0.06)
    assert lengths[2] / total == pytest.approx(2 / 9, abs=0.03)
    assert sum(size * number for size, number in lengths.items()) == 12 * 4000


def test_a_span_has_one_fate():
    token_ids = sequences(2000)
    maskable = ~np.isin(token_ids, SPECIAL)
    starts = word_starts(maskable, GOES_ON[token_ids])
    draw = Draws(np.arange(2000), 0)
    chosen, spans = choose_spans(maskable, starts, masks_per_row(maskable, 0.15), 3.0, draw.apart(0))
    after = replace_tokens(token_ids, chosen, spans, (0.5, 0.0), MASK, np.arange(5, VOCABULARY), draw.apart(1))
    is_mask, several = after == MASK, 0
    for row in range(2000):
        for start in np.unique(spans[row][chosen[row]]):
            inside = chosen[row] & (spans[row] == start)
            assert len(set(is_mask[row, inside].tolist())) == 1
            several += inside.sum() > 1
    assert several > 1000
    assert is_mask[chosen].mean() == pytest.approx(0.5, abs=0.03)


def test_labels_by_hand():
    token_ids = np.int32([[1, 7, 8, 9], [1, 6, 5, 2], [0, 0, 0, 0]])
    chosen = np.array([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    positions, labels = gather_labels(token_ids, chosen)
    assert positions.tolist() == [[1, 3], [2, 0], [0, 0]]
    assert labels.tolist() == [[7, 9], [5, 0], [0, 0]]
    assert [each.tolist() for each in gather_labels(token_ids[2:], chosen[2:])] == [[[0]], [[0]]]


def by_row(parts, examples):
    """Row number -> what is hidden in it; the first token of the feature `a` tells the row."""
    found = {}
    for part in parts:
        for row in range(len(part["a"])):
            if part["a"][row, 0]:
                number = int(part["b"][row, 0])
                count = int((part[LABELS][row] != 0).sum())
                found[number] = (part[POSITIONS][row, :count].tolist(), part[LABELS][row, :count].tolist())
    return found


class OfFeature:
    """Masks the feature `a`, whose ids here are greater than the vocabulary."""

    added = masking().added

    def __call__(self, batch, rows, seed, epoch):
        token_ids = np.where(batch["a"] > 0, 5 + batch["a"] % 190, 0).astype(np.int32)
        found = masking(share=0.4)({"token_ids": token_ids}, rows, seed, epoch)
        return {**batch, POSITIONS: found[POSITIONS], LABELS: found[LABELS]}


@pytest.mark.parametrize(("num_replicas", "micro_batches"), [(2, 1), (1, 3), (2, 2)])
def test_the_same_tokens_are_hidden_on_any_number_of_replicas_and_after_a_resume(
    make_examples, num_replicas, micro_batches
):
    examples = make_examples([[length, 1] for length in (3, 5, 8, 8, 9, 4, 6, 7, 3, 5, 2)])
    settings = BatchingSettings(global_batch_size=4, max_sequence_length=9)

    def stream_of(*arguments):
        stream = BatchStream(examples, settings, 3, *arguments)
        stream.corruption = OfFeature()
        return stream

    whole, split = stream_of(), stream_of(num_replicas, micro_batches)
    assert split.feature_types == {"a": "int32", "b": "int32", POSITIONS: "int32", LABELS: "int32"}
    seen = {}
    for epoch in (0, 1):
        for step in range(3):
            alone = by_row([part for element in whole.elements_of_step(epoch, step, 3 * epoch) for part in element], 0)
            parts = [part for element in split.elements_of_step(epoch, step, 3 * epoch) for part in element]
            assert by_row(parts, 0) == alone
            seen.setdefault(epoch, {}).update(alone)
    assert len(seen[0]) == len(seen[1]) == len(examples)
    assert seen[0] != seen[1], "each epoch hides others"
    split.seek(1, 2, 3)
    iterator = iter(split.dataset().as_numpy_iterator())
    resumed = [part for _ in range(num_replicas) for part in next(iterator)]
    last = by_row(resumed, 0)
    assert last == {number: seen[1][number] for number in last}


def test_an_evaluation_hides_the_same_tokens_whatever_the_seed(make_examples):
    examples = make_examples([[length, 1] for length in (3, 5, 8, 8, 9)])
    found = []
    for seed in (0, 5):
        stream = BatchStream(examples, BatchingSettings(global_batch_size=2, max_sequence_length=9), seed)
        stream.corruption = OfFeature()
        found.append(
            by_row([part for epoch in (0,) for rows in stream.batches(epoch) for part in stream.parts(rows)], 0)
        )
    assert found[0] == found[1]
    assert len(found[0]) == 5
