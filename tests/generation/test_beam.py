"""Beam search over tables of next-token probabilities, where the best answer can be worked out by hand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.generation.beam import WINDOW, beam_search, length_penalty, top_k

START, END = 1, 2


def empty_cache(batch_size=1):
    """A number for each slot."""
    return lambda slots: tf.zeros([batch_size, 1, slots, 1])


def search(table, beam_size, max_lengths=(6,), alpha=0.0):
    """Searches with logits = log of `table[token]`, the probabilities of the token after `token`."""
    logits = tf.math.log(tf.constant(table, tf.float32))

    def step(token_ids, mask, position, slot, cache):
        return tf.gather(logits, token_ids), cache

    return beam_search(step, empty_cache(len(max_lengths)), tf.constant(max_lengths), beam_size, START, END, alpha)


def table_of(rows):
    """Rows by token; tokens that have none go to the end."""
    table = np.full((6, 6), 1e-9)
    table[:, END] = 1.0
    for token, row in rows.items():
        table[token] = 1e-9
        for following, probability in row.items():
            table[token, following] = probability
    return table / table.sum(axis=1, keepdims=True)


# The likeliest first token, 3, leads to unlikely ends; the second, 4, to a sure one: 0.6 * 0.4 < 0.4 * 1.
GARDEN_PATH = table_of({START: {3: 0.6, 4: 0.4}, 3: {5: 0.4, 4: 0.3, 3: 0.3}, 4: {END: 1.0}, 5: {END: 1.0}})


def test_beam_of_one_is_greedy():
    answer = search(GARDEN_PATH, beam_size=1)
    np.testing.assert_array_equal(answer.token_ids[0, 0], [3, 5, END, 0, 0, 0])
    np.testing.assert_allclose(answer.scores[0, 0], np.log(0.6 * 0.4), atol=1e-5)


def test_a_wider_beam_finds_the_better_answer():
    answer = search(GARDEN_PATH, beam_size=2)
    np.testing.assert_array_equal(answer.token_ids[0, 0], [4, END, 0, 0, 0, 0])
    np.testing.assert_allclose(answer.scores[0], np.log([0.4, 0.6 * 0.4]), atol=1e-5)


def test_unlikely_ends_do_not_keep_the_right_answer_from_ending():
    """At every step the end is second best, by far: two of them must not stop the search."""
    sure = table_of({START: {3: 0.99, END: 0.01}, 3: {4: 0.99, END: 0.01}, 4: {5: 0.99, END: 0.01}, 5: {END: 1.0}})
    answer = search(sure, beam_size=2)
    np.testing.assert_array_equal(answer.token_ids[0, 0], [3, 4, 5, END, 0, 0])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_full_beam_finds_the_best_of_all(alpha):
    """With room for every hypothesis, the n best are those of an exhaustive search."""
    rng = np.random.default_rng(3)
    table = np.full((5, 5), 1e-12)  # tokens 1 to 4; nothing leads to padding or to the start
    table[:, END:] = rng.dirichlet(np.ones(3), size=5)
    scores = {}
    for length in (1, 2, 3):
        for tokens in itertools.product([3, 4], repeat=length - 1):
            path = [START, *tokens, END]
            log_probability = sum(np.log(table[a, b]) for a, b in itertools.pairwise(path))
            scores[(*tokens, END)] = log_probability / ((5 + length) / 6) ** alpha
    best = sorted(scores, key=scores.get, reverse=True)[:3]
    answer = search(table, beam_size=16, max_lengths=(3,), alpha=alpha)
    found = [tuple(ids[: list(ids).index(END) + 1]) for ids in answer.token_ids[0].numpy() if END in ids][:3]
    assert found == best
    np.testing.assert_allclose(answer.scores[0, :3], [scores[tokens] for tokens in best], atol=1e-4)


def test_what_never_ends_is_cut_at_its_own_length():
    endless = table_of({START: {3: 1.0}, 3: {3: 1.0}})
    answer = search(endless, beam_size=2, max_lengths=(3, 5))
    np.testing.assert_array_equal(answer.token_ids[:, 0], [[3, 3, 3, 0, 0], [3, 3, 3, 3, 3]])
    assert np.isfinite(answer.scores).all()


def test_what_ended_comes_before_what_was_cut():
    """However unlikely an end is: half a sentence is no answer."""
    rarely_ends = table_of({START: {3: 0.9, END: 0.1}, 3: {3: 1.0}})
    answer = search(rarely_ends, beam_size=2, max_lengths=(1,))
    np.testing.assert_array_equal(answer.token_ids[0], [[END], [3]])
    np.testing.assert_allclose(answer.scores[0], np.log([0.1, 0.9]), atol=1e-5)


def test_an_answer_does_not_depend_on_its_batch():
    alone = search(GARDEN_PATH, beam_size=2, max_lengths=(4,))
    together = search(GARDEN_PATH, beam_size=2, max_lengths=(9, 4, 1))
    np.testing.assert_array_equal(together.token_ids[1, :, :4], alone.token_ids[0])
    np.testing.assert_allclose(together.scores[1], alone.scores[0], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_scores_are_those_of_the_answers(alpha):
    """Examples that are complete wait for the others of their batch without a change."""
    rng = np.random.default_rng(5)
    table = rng.dirichlet(np.full(6, 0.4), size=6) + 1e-6
    table[:, [0, START]] = 1e-12
    table /= table.sum(axis=1, keepdims=True)
    answer = search(table, beam_size=3, max_lengths=(12, 3, 25), alpha=alpha)
    for token_ids, scores in zip(answer.token_ids.numpy(), answer.scores.numpy(), strict=True):
        for tokens, score in zip(token_ids, scores, strict=True):
            length = np.count_nonzero(tokens)
            assert not tokens[length:].any(), "a gap in the answer"
            path = [START, *tokens[:length]]
            log_probability = sum(np.log(table[a, b]) for a, b in itertools.pairwise(path))
            assert score == pytest.approx(log_probability / ((5 + length) / 6) ** alpha, abs=1e-4)


def test_the_loop_ends_with_the_last_answer():
    steps = []

    def step(token_ids, mask, position, slot, cache):
        steps.append(int(position))
        logits = tf.math.log(tf.constant(GARDEN_PATH, tf.float32))
        return tf.gather(logits, token_ids), cache

    beam_search(step, empty_cache(), tf.constant([50]), 2, START, END)
    assert steps == [0, 1, 2]


def test_the_mask_names_the_slots_of_a_hypothesis():
    """Each hypothesis must see exactly the tokens that it consists of, whatever beams they were made in."""
    written = {}

    def step(token_ids, mask, position, slot, cache):
        for beam, token in enumerate(token_ids[0].numpy()):
            written[int(slot) + beam] = int(token)
        seen.append([[written[i] for i in np.flatnonzero(row)] for row in mask[0, 0].numpy()])
        return tf.gather(tf.math.log(tf.constant(GARDEN_PATH, tf.float32)), token_ids), cache

    seen = []
    beam_search(step, empty_cache(), tf.constant([6]), 2, START, END)
    assert seen[0][0] == [START]
    assert sorted(seen[1]) == [[START, 3], [START, 4]]
    assert [START, 3, 5] in seen[2]


def test_the_cache_keeps_what_was_written_however_long_the_answer():
    """Longer than the window by which it grows: every hypothesis finds all tokens that it consists of."""
    length = 2 * WINDOW + 3
    chain = table_of({START: {3: 1.0}, 3: {3: 0.6, 4: 0.4}, 4: {3: 1.0}})

    def step(token_ids, mask, position, slot, cache):
        updates = tf.cast(tf.reshape(token_ids, [2]), tf.float32)
        cache = tf.tensor_scatter_nd_update(cache, [[0, 0, int(slot) + beam, 0] for beam in range(2)], updates)
        seen.append([cache[0, 0, :, 0].numpy()[row].tolist() for row in mask[0, 0].numpy()])
        return tf.gather(tf.math.log(tf.constant(chain, tf.float32)), token_ids), cache

    seen = []
    answer = beam_search(step, empty_cache(), tf.constant([length]), 2, START, END)
    assert len(seen) == length
    assert [START, *answer.token_ids[0, 0].numpy()[:-1].tolist()] in seen[-1]


def test_length_penalty():
    np.testing.assert_allclose(length_penalty(tf.constant([1, 7]), 0.5), [1.0, np.sqrt(2.0)], rtol=1e-6)


@pytest.mark.parametrize("size", [7, 400, 1003])
def test_top_k_equals_that_of_tensorflow(size):
    rng = np.random.default_rng(0)
    values = tf.constant(rng.integers(0, 50, (2, 3, size)) / 50, tf.float32)  # many are equal
    ours, theirs = top_k(values, 5), tf.math.top_k(values, 5)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
