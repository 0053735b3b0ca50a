"""Bert against its formulas in NumPy; padding, segments and pairs; and heads by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.layers.heads import ClassificationHead, MaskedLanguageHead, SpanHead
from kerasllm.models.bert import Bert
from kerasllm.models.settings import BertSettings

SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12, "max_sequence_length": 10}
VOCABULARY_SIZE = 13
IDS = np.array([[2, 7, 9, 3, 4, 3], [2, 5, 3, 0, 0, 0]], "int32")
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], "int32")


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    model = Bert(VOCABULARY_SIZE, **SIZES, dropout=0.0, attention_dropout=0.0)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape))
    return model


def normalized(x, scale, offset):
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return (x - x.mean(-1, keepdims=True)) / deviation * scale + offset


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(model, ids, segments, num_heads=2):
    """The hidden vectors, from the formulas of the paper, one sequence and one head at a time."""
    weights = {weight.path: weight.numpy().astype("float64") for weight in model.weights}

    def dense(name, x):
        return x @ weights[f"{name}/kernel"].T + weights[f"{name}/bias"]

    def norm(name, x):
        return normalized(x, weights[f"{name}/scale"], weights[f"{name}/offset"])

    rows = []
    for sequence, kinds in zip(ids, segments, strict=True):
        x = weights["embedding/table"][sequence] + weights["positions/table"][: len(sequence)]
        x = norm("embedding_norm", x + weights["segments/table"][kinds])
        for index in range(2):
            layer = f"layer_{index}"
            query, key, value = np.split(dense(f"{layer}/self_attention/query_key_value", x), 3, axis=-1)
            heads = []
            for part in np.split(np.arange(x.shape[-1]), num_heads):
                scores = query[:, part] @ key[:, part].T / math.sqrt(len(part))
                scores[:, sequence == 0] = -np.inf
                shares = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(shares / shares.sum(-1, keepdims=True) @ value[:, part])
            attended = dense(f"{layer}/self_attention/output", np.concatenate(heads, -1))
            x = norm(f"{layer}/self_attention_residual/normalization", x + attended)
            wide = gelu(dense(f"{layer}/feed_forward/expand", x))
            x = norm(f"{layer}/feed_forward_residual/normalization", x + dense(f"{layer}/feed_forward/contract", wide))
        rows.append(x)
    return np.stack(rows)


def test_hidden_vectors_follow_the_formulas(model):
    hidden = model({"token_ids": tf.constant(IDS), "segment_ids": tf.constant(SEGMENTS)})
    expected = reference(model, IDS, SEGMENTS)
    np.testing.assert_allclose(hidden, expected, atol=2e-5)
    kernel, bias = (weight.numpy() for weight in model.pooler.weights)
    np.testing.assert_allclose(model.pooled(hidden), np.tanh(expected[:, 0] @ kernel.T + bias), atol=2e-5)


def test_without_segments_everything_is_the_first(model):
    hidden = model({"token_ids": tf.constant(IDS)})
    np.testing.assert_allclose(hidden, reference(model, IDS, np.zeros_like(IDS)), atol=2e-5)


def test_padding_changes_nothing(model):
    hidden = model({"token_ids": tf.constant(IDS)})[1, :3]
    np.testing.assert_allclose(hidden, model({"token_ids": tf.constant(IDS[1:, :3])})[0], atol=1e-5)


def test_segments_have_the_gradient_of_a_lookup(model):
    table, upstream = model.segments.table, np.random.default_rng(1).normal(size=(2, 6, 8)).astype("float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.segments(tf.constant(SEGMENTS)) * upstream)
    gradient = tape.gradient(total, table.value)
    np.testing.assert_allclose(gradient, [upstream[kind == SEGMENTS].sum(0) for kind in (0, 1)], rtol=1e-5)


def test_dropout_is_for_training_alone():
    model = Bert(VOCABULARY_SIZE, **SIZES, dropout=0.5)
    first, second = (model({"token_ids": tf.constant(IDS)}, training=True).numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-3
    first, second = (model({"token_ids": tf.constant(IDS)}).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_weights_begin_as_a_cut_normal_distribution():
    model = Bert(1000, num_layers=1, num_heads=2, hidden_dim=64, intermediate_dim=128)
    for weight in model.trainable_weights:
        values = weight.numpy()
        if weight.name in ("kernel", "table") and values.size >= 1000:
            assert np.abs(values).max() <= 0.0401, weight.path
            assert values.std() == pytest.approx(0.0176, rel=0.1), weight.path  # 0.88 of 0.02: the tails are cut off
    kernels = [weight.numpy() for weight in model.trainable_weights if weight.shape == (64, 64)]
    assert len(kernels) == 2
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_the_published_base_has_its_number_of_weights():
    """109,482,240 of bert-base-uncased, counted without making them."""
    settings = BertSettings()
    width, wide = settings.hidden_dim, settings.intermediate_dim
    block = 4 * (width + 1) * width + (width + 1) * wide + (wide + 1) * width + 4 * width
    tables = (30522 + settings.max_sequence_length + settings.num_segments + 2) * width
    assert tables + settings.num_layers * block + (width + 1) * width == 109_482_240
    model = Bert(VOCABULARY_SIZE, **SIZES)
    block = 4 * 9 * 8 + 9 * 12 + 13 * 8 + 4 * 8
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == (13 + 10 + 2 + 2) * 8 + 2 * block + 72


def test_only_the_wanted_vectors_are_computed(model):
    """The same ones as among all, with the same gradient, and products of the last block with no other rows."""
    inputs, wanted = (
        {"token_ids": tf.constant(IDS), "segment_ids": tf.constant(SEGMENTS)},
        tf.constant([[4, 0], [1, 1]]),
    )
    results = []
    for places in (None, wanted):
        with tf.GradientTape() as tape:
            hidden = model(inputs, wanted=places)
            hidden = tf.gather(hidden, wanted, batch_dims=1) if places is None else hidden
            loss = tf.reduce_sum(hidden**2 * tf.range(1.0, 33.0, 1)[None, None, :8])
        weights = [weight.value for weight in model.trainable_weights if "pooler" not in weight.path]
        results.append([hidden, *map(tf.convert_to_tensor, tape.gradient(loss, weights))])
    for of_all, alone in zip(*results, strict=True):
        np.testing.assert_allclose(of_all, alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.summary_of(inputs), model.pooled(model(inputs)), atol=1e-5)
    graph = tf.function(lambda ids: model({"token_ids": ids}, wanted=tf.zeros_like(ids[:, :1])), autograph=False)
    operations = graph.get_concrete_function(IDS).graph.get_operations()
    shapes = [tuple(operation.outputs[0].shape) for operation in operations if operation.type == "MatMul"]
    assert [rows for rows, columns in shapes if columns == 12] == [12, 2], "feed-forward of all 12 tokens, then of 2"


def test_recorded_vectors_are_those_of_all_tokens(model):
    inputs, wanted = {"token_ids": tf.constant(IDS)}, tf.constant([[3], [1]])
    plain = model(inputs)
    with model.recorded_hidden() as record:
        chosen = model(inputs, wanted=wanted)
    assert len(record) == 3
    np.testing.assert_allclose(record[-1][0], plain, atol=1e-5)
    np.testing.assert_allclose(chosen, tf.gather(plain, wanted, batch_dims=1), atol=1e-5)


def test_logits_of_hidden_tokens_by_hand(model):
    head = MaskedLanguageHead(VOCABULARY_SIZE, 8)
    head.bias.assign(np.arange(13) / 10)
    hidden = np.random.default_rng(2).normal(size=(2, 6, 8)).astype("float32")
    logits = head(tf.constant(hidden), embedding=model.embedding)
    vectors = normalized(gelu(hidden @ head.dense.kernel.numpy().T), 1.0, 0.0)
    expected = vectors @ model.embedding.table.numpy().T + np.arange(13) / 10
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_heads_are_dense_layers_of_float32_logits():
    x = np.random.default_rng(3).normal(size=(2, 5, 8)).astype("float32")
    tags, answers = ClassificationHead(3, 8), SpanHead(8)
    np.testing.assert_allclose(tags(tf.constant(x)), x @ tags.dense.kernel.numpy().T, atol=1e-6)
    np.testing.assert_allclose(tags(tf.constant(x[:, 0])), x[:, 0] @ tags.dense.kernel.numpy().T, atol=1e-6)
    start, end = answers(tf.constant(x))
    np.testing.assert_allclose(np.stack([start, end], -1), x @ answers.dense.kernel.numpy().T, atol=1e-6)
    assert np.abs(tags(tf.constant(x), training=True) - tags(tf.constant(x), training=True)).max() > 1e-4
    assert [weight.path.split("/", 1)[1] for weight in tags.trainable_weights] == ["dense/kernel", "dense/bias"]
