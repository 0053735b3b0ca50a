"""The task of texts: pairs and what is cut of them, a loss by hand for each kind of label, answers and figures."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.tasks.classify_text import ClassifyText
from kerasllm.training.adversarial import Fgm
from kerasllm.training.objectives import RDrop, Supervised

RECIPE = """
task: classify_text
data: {source: table, train: a.csv, columns: {text: text, label: label}}
classification: {kind: one_label}
batching: {max_sequence_length: 8}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 9}
training: {train_steps: 1}
"""
PAIR = "data.columns={text: a, other_text: b, label: c}"
WORDS = "abcdefghijkl"
LABELS = ("bad", "fair", "good")
START, END = 1, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Each letter is a word with an id of its own: a 4, b 5, c 6 ..."""
    settings, texts = TokenizerSettings(kind="words"), [" ".join(WORDS)]
    return train_tokenizer(settings, CleaningSettings(), texts, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def build(tmp_path, tokenizer):
    """build("section.key=value", ...) is a task."""

    def build(*overrides, labels=LABELS):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        recipe = load_recipe(tmp_path / "r.yaml", overrides)
        labels = () if recipe.classification.kind == "number" else labels
        return ClassifyText(recipe, Vocabulary(tokenizer, labels))

    return build


def ids(letters):
    return [4 + WORDS.index(letter) for letter in letters]


def with_random_weights(task):
    generator = np.random.default_rng(0)
    for variable in task.build_model().weights:
        variable.assign(generator.normal(size=variable.shape))
    return task


def encode(task, *texts, label=None):
    columns = dict(zip(task.inputs.values(), texts, strict=True))
    label = label or ["good"] * len(texts[0])
    return task.encode({name: tf.constant(column) for name, column in {**columns, "label": label}.items()})


def batch_of(task, *texts, label=None, padding_rows=1):
    """The features as the training gets them, with rows of nothing but padding."""
    features = {name: rows.to_tensor().numpy() for name, rows in encode(task, *texts, label=label).items()}
    return {name: np.pad(array, ((0, padding_rows), (0, 0))) for name, array in features.items()}


def test_features_of_a_text_and_of_a_pair(build):
    features = encode(build(), ["a b", ""], label=["good", "bad"])
    assert features["token_ids"].to_list() == [[START, *ids("ab"), END], [START, END]]
    assert features["segment_ids"].to_list() == [[0] * 4, [0] * 2]
    assert features["num_cut_tokens"].to_list() == [[0], [0]]
    assert features["labels"].to_list() == [[3], [1]]
    assert {rows.dtype for rows in features.values()} == {tf.int32}
    features = encode(build(PAIR), ["a b"], ["c"])
    assert features["token_ids"].to_list() == [[START, *ids("ab"), END, *ids("c"), END]]
    assert features["segment_ids"].to_list() == [[0, 0, 0, 0, 1, 1]]


def test_several_labels_and_numbers(build):
    several = build("classification={kind: several_labels, separator: '|'}")
    features = encode(several, ["a", "b", "c"], label=["good| bad ", "fair", "|"])
    assert features["labels"].to_list() == [[3, 1], [2], []]
    number = build("classification={kind: number, number_offset: 2.5, number_scale: 0.5}")
    features = encode(number, ["a", "b"], label=["2.75", "-1e1"])
    assert features["number"].to_list() == [[0.5], [-25.0]]
    assert features["number"].dtype == tf.float32


def shorten(first, second, room):
    """Tokens are taken off the end of the longer text, of the second where both are as long."""
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    return first, second


@pytest.mark.parametrize("length", [5, 7, 8])
def test_a_pair_is_cut_at_its_longer_text(build, length):
    task = build(PAIR, f"batching.max_sequence_length={length}")
    rows = [(WORDS[:n], WORDS[:m]) for n in range(8) for m in range(8)]
    features = encode(task, [" ".join(first) for first, _ in rows], [" ".join(second) for _, second in rows])
    for row, (first, second) in enumerate(rows):
        kept, other = shorten(first, second, length - 3)
        assert features["token_ids"][row].numpy().tolist() == [START, *ids(kept), END, *ids(other), END]
        assert features["segment_ids"][row].numpy().tolist() == [0] * (len(kept) + 2) + [1] * (len(other) + 1)
        cut = len(first) + len(second) - len(kept) - len(other)
        assert features["num_cut_tokens"][row].numpy().tolist() == [cut]


@pytest.mark.parametrize(("batch", "model", "length"), [(6, 9, 6), (50, 7, 7)])
def test_what_fits_neither_batch_nor_model_is_cut_in_training_and_in_answers(build, batch, model, length):
    task = build(f"batching.max_sequence_length={batch}", f"model.max_sequence_length={model}")
    with_random_weights(task)
    features = encode(task, [" ".join(WORDS)])
    assert features["token_ids"].to_list() == [[START, *ids(WORDS[: length - 2]), END]]
    assert features["num_cut_tokens"].to_list() == [[len(WORDS) - length + 2]]
    answers = task.answer(tf.constant([" ".join(WORDS), " ".join(WORDS[: length - 2]), " ".join(WORDS[: length - 3])]))
    probabilities = answers["probabilities"].numpy()
    np.testing.assert_allclose(probabilities[0], probabilities[1], rtol=1e-5)
    assert np.abs(probabilities[0] - probabilities[2]).max() > 1e-4


def test_what_encode_reads_makes_prepared_data_another(build):
    def settings(*overrides):
        return ClassifyText.encoding_settings(build(*overrides).recipe)

    first = settings()
    for other in ("batching.max_sequence_length=7", "classification.separator=;", "classification.number_scale=2"):
        assert settings(other) != first, other
    for other in ("model.max_sequence_length=99", "classification.threshold=0.2", "model.dropout=0.3"):
        assert settings(other) == first, other


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_loss_of_one_label(build):
    task = build()
    batch = batch_of(task, ["a", "b"], label=["good", "fair"])
    logits = np.float32([[[1, 2, 4]], [[0, 5, 1]], [[9, 9, 9]]])
    losses, weights = task.loss(tf.constant(logits), batch, label_smoothing=0.0)
    expected = log_softmax(logits[:2, 0])
    np.testing.assert_allclose(losses[:2, 0], [-expected[0, 2], -expected[1, 1]], rtol=1e-5)
    np.testing.assert_array_equal(weights, [[1], [1], [0]])
    losses, _ = task.loss(tf.constant(logits), batch, label_smoothing=0.3)
    np.testing.assert_allclose(losses[0, 0], -(0.8 * expected[0, 2] + 0.1 * expected[0, :2].sum()), rtol=1e-5)


def test_loss_of_several_labels_is_that_of_sigmoids(build):
    task = with_random_weights(build("classification.kind=several_labels"))
    batch = batch_of(task, ["a", "b c"], label=["good,bad", "fair"])
    hidden = task.model({name: batch[name] for name in ("token_ids", "segment_ids")})
    z = task.model.head(task.model.pooled(hidden)).numpy()[:2]
    logits = task.forward(task.model, batch, training=False)
    assert logits.shape == (3, 3, 2)
    wanted = np.array([[1, 0, 1], [0, 1, 0]])
    for smoothing in (0.0, 0.2):
        losses, weights = task.loss(logits, batch, smoothing)
        smooth = wanted * (1 - smoothing) + smoothing / 2
        yes = 1 / (1 + np.exp(-z))
        expected = -(smooth * np.log(yes) + (1 - smooth) * np.log(1 - yes))
        np.testing.assert_allclose(losses[:2], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(weights, [[1] * 3, [1] * 3, [0] * 3])


def test_loss_of_a_number_is_its_squared_error(build):
    task = build("classification={kind: number, number_offset: 1, number_scale: 2}")
    batch = batch_of(task, ["a", "b"], label=["5", "0"])
    losses, weights = task.loss(tf.constant([[[1.5]], [[0.5]], [[7.0]]]), batch, label_smoothing=0.1)
    np.testing.assert_allclose(losses[:2], [[(1.5 - 2) ** 2], [(0.5 + 0.5) ** 2]])
    np.testing.assert_array_equal(weights, [[1], [1], [0]])


KINDS = ["one_label", "several_labels", "number"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_others_and_is_what_training_saw(build, kind):
    task = with_random_weights(build(PAIR, f"classification.kind={kind}"))
    first, second = ["a b c", "", "d", "e f g h i j k"], ["b", "a c d e f g", "", "k j i h g f e"]
    together = {name: array.numpy() for name, array in task.answer(tf.constant(first), tf.constant(second)).items()}
    for row in range(4):
        alone = task.answer(tf.constant(first[row : row + 1]), tf.constant(second[row : row + 1]))
        for name, array in alone.items():
            if array.dtype == tf.string:
                assert np.all(array.numpy()[0] == together[name][row])
            else:
                np.testing.assert_allclose(array[0], together[name][row], atol=1e-5)
    if kind == "one_label":
        batch = batch_of(task, first, second, padding_rows=0)
        probabilities = tf.nn.softmax(task.forward(task.model, batch, training=False))[:, 0]
        np.testing.assert_allclose(together["probabilities"], probabilities, atol=1e-5)


def with_outputs(task, outputs):
    """The task with a head that says the same to every text."""
    task.build_model()
    task.model.head.dense.kernel.assign(tf.zeros_like(task.model.head.dense.kernel))
    task.model.head.dense.bias.assign(outputs)
    return task


def test_answers_by_name(build):
    texts = tf.constant(["a", "b c"])
    answers = with_outputs(build(), np.log([0.2, 0.5, 0.3])).answer(texts)
    assert list(answers) == ["label", "probability", "probabilities", "labels"]
    assert answers["label"].numpy().tolist() == [b"fair"] * 2
    np.testing.assert_allclose(answers["probability"], [0.5] * 2, rtol=1e-5)
    np.testing.assert_allclose(answers["probabilities"], [[0.2, 0.5, 0.3]] * 2, rtol=1e-5)
    assert answers["labels"].numpy().tolist() == [[b"bad", b"fair", b"good"]] * 2


def test_answers_of_several_labels_and_of_numbers(build):
    several = build("classification={kind: several_labels, separator: ';', threshold: 0.3}")
    logits = [np.log(p / (1 - p)) for p in (0.4, 0.2, 0.9)]
    answers = with_outputs(several, logits).answer(tf.constant(["a"]))
    assert answers["label"].numpy().tolist() == [b"bad;good"]
    np.testing.assert_allclose(answers["probabilities"], [[0.4, 0.2, 0.9]], rtol=1e-5)
    none = with_outputs(several, [-9.0] * 3).answer(tf.constant(["a"]))
    assert none["label"].numpy().tolist() == [b""]
    number = build("classification={kind: number, number_offset: 1, number_scale: 2}")
    answers = with_outputs(number, [1.5]).answer(tf.constant(["a", ""]))
    assert {name: array.numpy().tolist() for name, array in answers.items()} == {"number": [4.0, 4.0]}


def test_metrics_of_labels(build):
    task = build()
    given, wanted = ["bad", "bad", "good", "good"], ["bad", "fair", "good", "bad"]
    metrics = task.metrics([{"label": label} for label in given], wanted)
    assert metrics["accuracy"] == metrics["f1_micro"] == 0.5
    assert metrics["f1_macro"] == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    assert metrics["per_label"]["bad"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "records": 2}
    assert metrics["per_label"]["fair"] == {"precision": 0, "recall": 0, "f1": 0, "records": 1}
    assert {*metrics} == {*ClassifyText.metric_names_of(task.recipe), "per_label"}
    (figure,) = task.pictures([{"label": label} for label in given], wanted, []).values()
    assert figure.axes[0].get_title() == "2 of 4 right"


def test_metrics_of_several_labels_and_of_numbers(build):
    several = build("classification.kind=several_labels")
    answers = [{"label": "bad,good"}, {"label": ""}, {"label": "fair"}]
    metrics = several.metrics(answers, ["good, bad", "bad", "fair,good"])
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert (metrics["precision_micro"], metrics["recall_micro"]) == (1.0, 3 / 5)
    assert several.pictures(answers, ["good", "bad", "fair"], []) == {}
    number = build("classification.kind=number")
    metrics = number.metrics([{"number": value} for value in (1.0, 2.0, 9.0)], ["0.5", "1", "1.5"])
    assert metrics["spearman"] == pytest.approx(1.0)
    assert {*metrics} == {*ClassifyText.metric_names_of(number.recipe)}


def test_r_drop_of_several_labels_compares_sigmoids(build):
    """With dropout the two passes differ; the divergence of each label is that of its two outcomes."""
    task = with_random_weights(build("classification.kind=several_labels", "model.dropout=0.5"))
    batch = {name: tf.constant(array) for name, array in batch_of(task, ["a b c"], label=["good"]).items()}
    seen = []

    def forward(model, batch, training):
        seen.append(ClassifyText.forward(task, model, batch, training))
        return seen[-1]

    task.forward = forward
    losses, _ = RDrop(task, 0.0, alpha=2.0)(task.model, batch, training=True)
    first, second = (array.numpy() for array in tf.split(seen[-1], 2))
    plain = [task.loss(tf.constant(array), batch, 0.0)[0].numpy() for array in (first, second)]
    p, q = (1 / (1 + np.exp(-array[..., 1])) for array in (first, second))
    divergence = ((p - q) * (np.log(p / q) - np.log((1 - p) / (1 - q)))) / 2
    np.testing.assert_allclose(losses[:1], (sum(plain) / 2 + divergence)[:1], rtol=1e-3, atol=1e-6)
    assert divergence[:1].max() > 1e-3


def test_an_attack_reaches_the_embedding(build):
    task = with_random_weights(build("model.dropout=0", "model.attention_dropout=0"))
    batch = {name: tf.constant(array) for name, array in batch_of(task, ["a b c"]).items()}
    plain, _ = Supervised(task)(task.model, batch, training=True)
    attacked, weights = Fgm(Supervised(task), epsilon=0.5)(task.model, batch, training=True)
    assert float(attacked[0, 0]) > float(plain[0, 0])
    np.testing.assert_array_equal(weights, [[1], [0]])


NAMES = "classification.names={0: bad, 1: good, 2: fair}"


def test_labels_are_called_by_their_names(build):
    task = build(NAMES)
    assert task.read_record(task.recipe, {"text": "a", "label": " 1 "}) == {"text": "a", "label": "good"}
    assert task.read_record(task.recipe, {"text": "a", "label": ""}) == {"text": "a", "label": ""}
    several = build(NAMES, "classification.kind=several_labels")
    assert several.read_record(several.recipe, {"text": "a", "label": "2, 0"})["label"] == "fair,bad"
    plain = build()
    assert plain.read_record(plain.recipe, {"text": "a", "label": "1"})["label"] == "1"
    assert task.encoding_settings(task.recipe) != plain.encoding_settings(plain.recipe)


@pytest.mark.parametrize("text", ["3", "good", "1.0"])
def test_a_label_without_a_name_is_refused(build, text):
    recipe = build(NAMES).recipe
    with pytest.raises(UserError, match=rf"^label '{text}' has no name; add one to .*names, which has 0, 1, 2"):
        ClassifyText.read_record(recipe, {"text": "a", "label": text})


def test_a_name_that_nothing_has_is_refused(build):
    with pytest.raises(UserError, match=r"names\.7.*: no record of data\.train has the label '7'"):
        build("classification.names={0: bad, 1: good, 7: odd}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{kind: number, names: {0: bad}}", "names are those of labels, and a number has none"),
        ("{kind: several_labels, baseline: true}", "a baseline for kind: one_label only, and this is several_labels"),
        ("{kind: number, baseline: true}", "a baseline for kind: one_label only, and this is number"),
        ("{kind: several_labels, names: {0: 'a,b'}}", "names.0: 'a,b' cannot be the name of a label"),
        ("{names: {0: ''}}", "names.0: '' cannot be the name of a label"),
        ("{names: {0: 1}}", r"names\.0: must be text, found 1"),
    ],
)
def test_settings_that_contradict_themselves(build, settings, message):
    with pytest.raises(UserError, match=message):
        build(f"classification={settings}")


def test_the_baseline_learns_words_from_the_training_split_alone(build):
    task = build("classification.baseline=true", PAIR)
    training = {
        "text": ["a fine film", "a poor film", "fine", "poor", "so so"],
        "other_text": ["x", "x", "x", "x", "x"],
        "label": ["good", "bad", "good", "bad", "fair"],
    }
    columns, references = [["fine", "poor", "x", "new"], ["x", "x", "so so", "poor"]], ["good", "bad", "fair", "good"]
    figures = task.baseline(training, columns, references)
    assert set(figures) == {"baseline_accuracy", "baseline_f1_macro"}
    assert figures["baseline_accuracy"] == 0.75
    assert build().baseline(training, columns, references) == {}


def test_r_drop_of_a_number_is_refused(build):
    objective = "training.objective={name: fgm, epsilon: 1.0, around: {name: r_drop, alpha: 1.0}}"
    with pytest.raises(UserError, match=r"training\.objective: r_drop compares probabilities, and a number has none"):
        build("classification.kind=number", objective)


def test_too_few_positions_are_refused(build):
    assert build(PAIR, "batching.max_sequence_length=5").max_length == 5
    with pytest.raises(UserError, match=r"model\.max_sequence_length: 4 tokens, .* are too few; 5 are needed"):
        build(PAIR, "model.max_sequence_length=4")


def test_one_label_alone_is_refused(build):
    with pytest.raises(UserError, match=r"data\.train: has no other label than 'good'; there must be two"):
        build(labels=("good",))
