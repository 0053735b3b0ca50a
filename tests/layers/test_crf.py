"""The conditional random field against the sum over all paths, one by one."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.crf import LinearChainCrf

ALLOWED = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1]], bool)
ALLOWED_STARTS = np.array([1, 1, 0], bool)
LENGTHS = np.array([4, 1, 0, 3])


@pytest.fixture
def crf():
    layer, generator = LinearChainCrf(ALLOWED, ALLOWED_STARTS), np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(generator.normal(size=variable.shape))
    return layer


@pytest.fixture
def emissions():
    values = np.random.default_rng(2).normal(size=(4, 4, 3)).astype("float32") * 2
    values[0, 0, 2] += 9  # a label that may not be the first one
    return values


def scores_of_paths(crf, emission, length, only_allowed):
    """The score of each path of labels through the first `length` places."""
    transitions, starts, ends = (variable.numpy() for variable in (crf.transitions, crf.starts, crf.ends))
    scores = {}
    for path in itertools.product(range(3), repeat=length):
        pairs = list(itertools.pairwise(path))
        if only_allowed and not (ALLOWED_STARTS[path[0]] and all(ALLOWED[pair] for pair in pairs)):
            continue
        emitted = sum(emission[place, label] for place, label in enumerate(path))
        scores[path] = starts[path[0]] + emitted + sum(transitions[pair] for pair in pairs) + ends[path[-1]]
    return scores


def test_log_likelihood_is_that_over_all_paths(crf, emissions):
    labels = np.array([[0, 2, 1, 1], [2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 2, 1]], "int32")
    found = crf.log_likelihood(tf.constant(emissions), tf.constant(labels), tf.constant(LENGTHS, tf.int32)).numpy()
    for row, length in enumerate(LENGTHS):
        if length:
            scores = scores_of_paths(crf, emissions[row], length, only_allowed=False)
            expected = scores[tuple(labels[row, :length])] - np.log(np.exp(list(scores.values())).sum())
            assert found[row] == pytest.approx(expected, rel=1e-5)
    assert found[2] == 0


def test_decoding_gives_the_best_path_that_is_allowed(crf, emissions):
    found = crf.decode(tf.constant(emissions), tf.constant(LENGTHS, tf.int32)).numpy()
    for row, length in enumerate(LENGTHS):
        best = ()
        if length:
            scores = scores_of_paths(crf, emissions[row], length, only_allowed=True)
            best = max(scores, key=scores.get)
        assert tuple(found[row]) == (*best, *[0] * (4 - length))
    free = scores_of_paths(crf, emissions[0], 4, only_allowed=False)
    assert max(free, key=free.get) != tuple(found[0]), "the test needs a best path that is forbidden"


def test_marginals_are_those_of_all_allowed_paths(crf, emissions):
    found = crf.marginals(tf.constant(emissions), tf.constant(LENGTHS, tf.int32)).numpy()
    for row, length in enumerate(LENGTHS):
        expected = np.zeros((length, 3))
        scores = scores_of_paths(crf, emissions[row], length, only_allowed=True) if length else {}
        for path, score in scores.items():
            expected[range(length), path] += np.exp(score) / np.exp(list(scores.values())).sum()
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-5)


def test_gradient_against_finite_differences(crf, emissions):
    labels, lengths = tf.constant([[0, 2, 1, 1], [2, 0, 0, 0], [0] * 4, [1, 0, 2, 1]]), tf.constant(LENGTHS, tf.int32)

    @tf.function(autograph=False)
    def total():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(crf.log_likelihood(tf.constant(emissions), labels, lengths))
        return loss, tape.gradient(loss, [variable.value for variable in crf.weights])

    _, gradients = total()
    for variable, gradient in zip(crf.weights, gradients, strict=True):
        before = variable.numpy()
        for place in np.ndindex(before.shape):
            losses = []
            for shift in (0.05, -0.05):
                changed = before.copy()
                changed[place] += shift
                variable.assign(changed)
                losses.append(float(total()[0]))
            assert gradient.numpy()[place] == pytest.approx((losses[0] - losses[1]) / 0.1, abs=5e-3)
        variable.assign(before)


def test_a_sentence_does_not_depend_on_the_padding(crf, emissions):
    lengths = tf.constant([3, 1], tf.int32)
    labels = tf.constant([[0, 1, 2, 0], [1, 0, 0, 0]])
    wide = crf.log_likelihood(tf.constant(emissions[:2]), labels, lengths)
    narrow = crf.log_likelihood(tf.constant(emissions[:2, :3]), labels[:, :3], lengths)
    np.testing.assert_allclose(wide, narrow, rtol=1e-6)
    assert float(narrow[1]) != float(narrow[0])


def test_a_single_place_in_a_graph(crf, emissions):
    """A loop over no places at all is refused by graphs, and by them alone."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3]), tf.TensorSpec([None], tf.int32)], autograph=False)
    def all_of_it(emissions, lengths):
        labels = crf.decode(emissions, lengths)
        return labels, crf.marginals(emissions, lengths), crf.log_likelihood(emissions, labels, lengths)

    labels, marginals, likelihoods = all_of_it(emissions[:2, :1], [1, 0])
    scores = scores_of_paths(crf, emissions[0], 1, only_allowed=True)
    assert (int(labels[0, 0]),) == max(scores, key=scores.get)
    expected = np.exp([scores[0,], scores[1,]]) / np.exp(list(scores.values())).sum()
    np.testing.assert_allclose(marginals[0, 0], [*expected, 0], rtol=1e-5)
    assert float(likelihoods[0]) < 0 == float(likelihoods[1])
