"""Attention against a plain NumPy version, and what its masks and its cache must not change."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.attention import SelfAttention, attend, causal_mask, padding_attention_mask


def numpy_attention(query, key, value, mask):
    """Softmax of scaled products, written out: one head and one query after the other."""
    result = np.zeros_like(query)
    batch, heads, length, key_dim = query.shape
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                scores = key[b, h] @ query[b, h, t] / np.sqrt(key_dim)
                seen = np.broadcast_to(mask, (batch, heads, length, key.shape[2]))[b, h, t]
                exponentials = np.where(seen, np.exp(scores - scores[seen].max()), 0.0)
                probabilities = exponentials / exponentials.sum()
                result[b, h, t] = probabilities @ value[b, h]
    return result


def test_attend_equals_numpy():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 4, 8)).astype("float32")
    key, value = rng.normal(size=(2, 2, 3, 5, 8)).astype("float32")
    mask = rng.random((2, 1, 4, 5)) < 0.6
    mask[..., 0] = True
    expected = numpy_attention(query, key, value, mask)
    np.testing.assert_allclose(attend(query, key, value, tf.constant(mask)), expected, atol=1e-5)


def test_causal_mask_shows_the_past_only():
    expected = [[True, False, False], [True, True, False], [True, True, True]]
    np.testing.assert_array_equal(causal_mask(3)[0, 0], expected)


def test_padding_is_not_seen():
    rng = np.random.default_rng(0)
    layer = SelfAttention(num_heads=2, hidden_dim=8)
    layer.build((None, None, 8))
    x = rng.normal(size=(1, 5, 8)).astype("float32")
    other = x.copy()
    other[:, 3:] = 100.0
    mask = padding_attention_mask(tf.constant([[True, True, True, False, False]]))
    ours, _ = layer(x, attention_mask=mask)
    theirs, _ = layer(other, attention_mask=mask)
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=1e-6)


def test_cached_positions_equal_uncached():
    layer = SelfAttention(num_heads=2, hidden_dim=8)
    layer.build((None, None, 8))
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    expected, _ = layer(x, attention_mask=causal_mask(6))
    cache, outputs = layer.empty_cache(3, 6), []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        mask = causal_mask(6)[:, :, start:stop]
        output, cache = layer(x[:, start:stop], attention_mask=mask, cache=cache, slot=tf.constant(start))
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=1e-6)


def test_what_wanted_positions_see_and_learn_equals_the_whole():
    """With biases that are not 0, and with dropout, under which the probabilities of a position no longer sum to 1."""
    rng = np.random.default_rng(0)
    layer = SelfAttention(num_heads=2, hidden_dim=8)
    layer.build((None, None, 8))
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    layer.dropout = lambda p, training: p * tf.constant([2.0, 0.0, 2.0, 2.0, 0.0])  # the same for every position
    x, wanted = tf.constant(rng.normal(size=(2, 5, 8)), tf.float32), tf.constant([[3, 0], [1, 1]])
    mask = padding_attention_mask(tf.constant([[True, True, True, True, False], [True, True, True, False, False]]))
    upstream = tf.constant(rng.normal(size=(2, 2, 8)), tf.float32)

    def outputs_and_gradients(places):
        with tf.GradientTape() as tape:
            tape.watch(x)
            seen, _ = layer(x, attention_mask=mask, wanted=places, training=True)
            seen = tf.gather(seen, wanted, batch_dims=1) if places is None else seen
        variables = [variable.value for variable in layer.trainable_variables]
        return [seen, *tape.gradient(seen, [x, *variables], output_gradients=upstream)]

    for ours, theirs in zip(outputs_and_gradients(wanted), outputs_and_gradients(None), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_wanted_positions_are_written_to_the_cache_with_all_others():
    layer = SelfAttention(num_heads=2, hidden_dim=8)
    layer.build((None, None, 8))
    x, wanted = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32"), tf.constant([[2], [0]])
    mask = tf.ones([1, 1, 1, 3], tf.bool)
    results = []
    for places in (None, wanted):
        seen, cache = layer(x, mask, cache=layer.empty_cache(2, 3), slot=tf.constant(0), wanted=places)
        results.append([tf.gather(seen, wanted, batch_dims=1) if places is None else seen, *cache])
    for of_all, alone in zip(*results, strict=True):
        np.testing.assert_allclose(of_all, alone, atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_dim 8"):
        SelfAttention(num_heads=3, hidden_dim=8)
