"""Prompts and prefixes against sums made another way, and what they begin with."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.layers.attention import SelfAttention, causal_mask, padding_attention_mask
from kerasllm.models.bert import Bert
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.tuning.adaptation import adapt, begin
from kerasllm.tuning.prompts import Prefix
from kerasllm.tuning.settings import PrefixSettings, PromptSettings

SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12, "max_sequence_length": 16}
IDS = np.array([[5, 6, 7, 8], [9, 4, 0, 0]])


def build(settings=None, **sizes):
    keras.utils.set_random_seed(1)
    model = Bert(30, **{**SIZES, **sizes})
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape, scale=0.5))
    if settings is not None:
        adapt(model, settings)
        begin(model, 3)
    return model


def read(model, ids=IDS):
    return model({"token_ids": tf.constant(ids), "segment_ids": tf.zeros_like(ids)}).numpy()


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("mask", ["causal", "padding", None])
def test_attention_with_a_prefix(mask):
    keras.utils.set_random_seed(1)
    attention, x = SelfAttention(2, 8), np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    attention.build((None, None, 8))
    plain = attention.output_projection
    attention.output_projection = lambda y: y
    prefix = Prefix(2, num_heads=2, key_dim=4)
    prefix.keys.assign(np.random.default_rng(1).normal(size=(2, 2, 4)))
    prefix.values.assign(np.random.default_rng(2).normal(size=(2, 2, 4)))
    attention.prefix = prefix.put_in_front
    seen = {"causal": np.tril(np.ones((1, 3, 3), bool)), "padding": np.array([[[1, 1, 0]], [[1, 1, 1]]], bool)}.get(
        mask
    )
    masks = {
        "causal": causal_mask(3),
        "padding": padding_attention_mask(tf.constant([[True, True, False], [True] * 3])),
    }
    found, _ = attention(x, attention_mask=masks.get(mask))
    q, k, v = np.split(x @ attention.query_key_value.kernel.numpy().T, 3, axis=-1)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for row in range(2):
            keys = np.concatenate([prefix.keys.numpy()[head], k[row, :, part]])
            values = np.concatenate([prefix.values.numpy()[head], v[row, :, part]])
            scores = q[row, :, part] @ keys.T / 2.0  # [3, 2 + 3]
            if seen is not None:
                scores[:, 2:] = np.where(seen[row % len(seen)], scores[:, 2:], -np.inf)
            np.testing.assert_allclose(found[row, :, part], softmax(scores) @ values, atol=1e-5)
    assert plain.kernel.shape == (8, 8)


def test_prefixes_begin_as_keys_and_values_that_the_model_makes():
    """One block: its prefix are those of a sequence of tokens, so its attention is as if it saw this one besides."""
    model, plain = build(PrefixSettings(num_tokens=3), num_layers=1), build(num_layers=1)
    tokens = np.random.default_rng(3).integers(1, 30, size=3)
    x = plain.embedding_norm(
        tf.gather(plain.embedding.table.value, tokens) + plain.positions.table.value[:3] + plain.segments.table.value[0]
    )[tf.newaxis]
    attention = plain.blocks[0].self_attention
    _, key, value = attention.heads.split(attention.query_key_value(x), 3)
    np.testing.assert_allclose(model.prefixes[0].keys.numpy(), key[0], atol=1e-5)
    np.testing.assert_allclose(model.prefixes[0].values.numpy(), value[0], atol=1e-5)
    assert np.abs(read(model) - read(plain)).max() > 1e-3


def test_a_prompt_is_read_like_tokens_that_stand_anywhere():
    """What attends does not ask for an order: the vectors behind the tokens, and by hand, give the same."""
    model, plain = build(PromptSettings(num_tokens=3)), build()
    vectors = tf.tile(model.prompt.vectors.value[tf.newaxis], [2, 1, 1])
    x = plain.embedding(IDS) + plain.positions(tf.range(4)) + plain.segments(tf.zeros_like(IDS))
    x = plain.embedding_norm(tf.concat([x, vectors], axis=1))
    mask = padding_attention_mask(tf.constant(np.concatenate([IDS != 0, np.ones((2, 3), bool)], axis=1)))
    for block in plain.blocks:
        x, _ = block(x, attention_mask=mask)
    found = read(model)
    assert found.shape == (2, 4, 8)
    np.testing.assert_allclose(found[0], x[0, :4], atol=1e-5)
    np.testing.assert_allclose(found[1, :2], x[1, :2], atol=1e-5)
    np.testing.assert_allclose(model.pooled(found), np.tanh(plain.pooler(x[:, 0])), atol=1e-5)
    assert np.abs(found - read(plain)).max() > 1e-3


@pytest.mark.parametrize("settings", [PromptSettings(num_tokens=3), PrefixSettings(num_tokens=3)])
def test_padding_changes_nothing(settings):
    model = build(settings)
    padded = read(model, np.pad(IDS, ((0, 1), (0, 5))))
    np.testing.assert_allclose(padded[0, :4], read(model)[0], atol=1e-5)
    np.testing.assert_allclose(padded[1, :2], read(model, IDS[1:, :2])[0], atol=1e-5)


@pytest.mark.parametrize("settings", [PromptSettings(num_tokens=3), PrefixSettings(num_tokens=3)])
def test_the_first_values_follow_from_the_seed_and_the_weights(settings):
    first, again = build(settings), build(settings)
    begin(again, 3)
    np.testing.assert_array_equal(read(first), read(again))
    begin(again, 4)
    assert np.abs(read(first) - read(again)).max() > 1e-3


def test_a_prompt_begins_as_tokens():
    model = build(PromptSettings(num_tokens=5))
    tokens = np.random.default_rng(3).integers(1, 30, size=5)
    np.testing.assert_array_equal(model.prompt.vectors.numpy(), model.embedding.table.numpy()[tokens])


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("bert", PromptSettings(num_tokens=17), r"^num_tokens: 17 is more than the 16 positions"),
        ("translator", PrefixSettings(), r"^name: EncoderDecoder takes no prefix; a Bert does, and any model lora"),
    ],
)
def test_what_does_not_fit(model, settings, message):
    sizes = {key: value for key, value in SIZES.items() if key != "num_layers"}
    models = {"bert": build, "translator": lambda: EncoderDecoder(30, num_layers=1, **sizes)}
    with pytest.raises(UserError, match=message):
        adapt(models[model](), settings)
