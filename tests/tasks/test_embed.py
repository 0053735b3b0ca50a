"""The task of vectors: pooling and loss by hand, padding that changes nothing, and what pairs are measured by."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.metrics.labels import number_metrics
from kerasllm.recipe import load_recipe
from kerasllm.tasks.embed import Embed

RECIPE = """
task: embed
data: {source: table, train: a.csv, columns: {text: text, other_text: other, label: score}}
embedding: {number_scale: 5.0}
batching: {max_sequence_length: 8}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 9}
training: {train_steps: 1}
"""
WORDS = "abcdefghijkl"
START, END = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Each letter is a word with an id of its own: a 4, b 5, c 6 ..."""
    settings, texts = TokenizerSettings(kind="words"), [" ".join(WORDS)]
    return train_tokenizer(settings, CleaningSettings(), texts, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(tmp_path, tokenizer):
    """build("section.key=value", ...) is a task whose model has random weights."""

    def build(*overrides):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        task = Embed(load_recipe(tmp_path / "r.yaml", overrides), Vocabulary(tokenizer))
        generator = np.random.default_rng(0)
        for variable in task.build_model().weights:
            variable.assign(generator.normal(size=variable.shape))
        return task

    return build


def vectors_of(task, *texts):
    return task.answer(tf.constant(texts))["vector"].numpy()


def hidden_of(task, text):
    token_ids, _ = task.tokenize(tf.constant([text]))
    return task.model({"token_ids": token_ids.to_tensor()})[0].numpy()


def encode(task, texts, others, numbers):
    columns = {"text": texts, "other_text": others, "label": numbers}
    return task.encode({name: tf.constant(column) for name, column in columns.items()})


def test_features_of_a_pair(build):
    features = encode(build(), ["a b", " ".join(WORDS)], ["c", "d"], ["2.5", "0"])
    assert features["token_ids"].to_list() == [[START, 4, 5, END], [START, *range(4, 10), END]]
    assert features["other_token_ids"].to_list() == [[START, 6, END], [START, 7, END]]
    assert features["num_cut_tokens"].to_list() == [[0], [6]]
    assert features["similarity"].to_list() == [[0.5], [0.0]]


@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda hidden: hidden.mean(axis=0)), ("first", lambda hidden: hidden[0])]
)
def test_a_vector_is_pooled_and_of_length_1(build, pooling, pool):
    plain = build(f"embedding.pooling={pooling}", "embedding.normalize=false")
    expected = pool(hidden_of(plain, "a b c"))
    np.testing.assert_allclose(vectors_of(plain, "a b c")[0], expected, rtol=1e-5)
    unit = build(f"embedding.pooling={pooling}")
    np.testing.assert_allclose(vectors_of(unit, "a b c")[0], expected / np.linalg.norm(expected), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_vector_depends_neither_on_padding_nor_on_the_others(build, pooling):
    task = build(f"embedding.pooling={pooling}", "embedding.normalize=false")
    together = vectors_of(task, "a b", " ".join(WORDS), "", "c")
    for text, vector in zip(["a b", " ".join(WORDS), "", "c"], together, strict=True):
        np.testing.assert_allclose(vectors_of(task, text)[0], vector, rtol=1e-5, atol=1e-6)
    assert np.abs(together[0] - together[3]).max() > 1e-2
    nothing = task.vectors(task.model, tf.zeros([1, 3], tf.int32), training=False)
    np.testing.assert_array_equal(nothing, np.zeros([1, 8]))


def test_what_is_too_long_is_cut_in_answers_as_in_training(build):
    whole, kept, shorter = vectors_of(build(), *(" ".join(WORDS[:length]) for length in (12, 6, 5)))
    np.testing.assert_array_equal(whole, kept)
    assert np.abs(kept - shorter).max() > 1e-3


@pytest.mark.parametrize("normalize", ["true", "false"])
def test_the_loss_is_the_squared_error_of_the_cosine(build, normalize):
    task = build(f"embedding.normalize={normalize}", "embedding.number_offset=1", "model.dropout=0")
    features = encode(task, ["a b", "c"], ["d e f", "g"], ["4.0", "0.5"])
    batch = {name: np.pad(rows.to_tensor().numpy(), ((0, 1), (0, 2))) for name, rows in features.items()}
    batch["similarity"] = batch["similarity"][:, :1]
    losses, weights = task.loss(task.forward(task.model, batch, training=False), batch, label_smoothing=0.1)
    for row, (text, other, target) in enumerate([("a b", "d e f", 0.6), ("c", "g", -0.1)]):
        x, y = (hidden_of(task, each).mean(axis=0) for each in (text, other))
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        np.testing.assert_allclose(losses[row, 0], (cosine - target) ** 2, rtol=1e-4)
    np.testing.assert_array_equal(weights, [[1], [1], [0]])


def test_a_split_is_measured_by_the_vectors_that_are_served(build):
    task = build("embedding.normalize=false")
    pairs = [("a b", "c"), ("d", "d"), ("e f g", "a")]
    columns = list(zip(*pairs, strict=True))
    asked = task.asked_in_evaluation()
    assert list(asked.inputs.values()) == ["text", "other_text"]
    found = asked.answer(*map(tf.constant, columns))["similarity"].numpy()
    x, y = (vectors_of(task, *column) for column in columns)
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-5)
    answers = [{"similarity": float(value)} for value in found]
    assert task.metrics(answers, ["1", "5", "2"]) == number_metrics([1.0, 5.0, 2.0], found.tolist())


@pytest.mark.parametrize(
    ("number", "message"),
    [("alike", "label 'alike' is not a number"), ("5.5", "becomes 1.1, .*embedding.number_scale"), ("nan", "nan")],
)
def test_a_number_that_no_cosine_can_be(build, number, message):
    recipe = build().recipe
    assert Embed.labels_in(recipe, "5.0") == []
    with pytest.raises(UserError, match=message):
        Embed.labels_in(recipe, number)


def test_what_does_not_fit_is_refused(build):
    with pytest.raises(UserError, match=r"model\.max_sequence_length: 2 tokens, .* are too few; 3 are needed"):
        build("model.max_sequence_length=2")
    with pytest.raises(UserError, match=r"training\.objective: r_drop compares probabilities, and a vector has none"):
        build("training.objective={name: fgm, epsilon: 1.0, around: {name: r_drop, alpha: 1.0}}")


def test_everything_that_is_trained_has_a_gradient(build):
    task = build()
    batch = {name: rows.to_tensor() for name, rows in encode(task, ["a b"], ["c"], ["2.5"]).items()}
    with tf.GradientTape() as tape:
        losses, _ = task.loss(task.forward(task.model, batch, training=True), batch, label_smoothing=0.0)
    variables = task.model.trainable_variables
    gradients = tape.gradient(losses, [variable.value for variable in variables])
    assert [each.path for each, gradient in zip(variables, gradients, strict=True) if gradient is None] == []
