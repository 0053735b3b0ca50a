"""The task of documents: features of pairs and stretches, losses by hand, filled masks, and figures of a split."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.packing import FOLLOWS
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.tasks.pretrain import MASK, Pretrain, ask
from kerasllm.training.objectives import RDrop, Supervised

RECIPE = """
task: pretrain
data: {source: documents, train: a.txt, validation: b.txt}
tokenizer: {kind: wordpiece, max_vocabulary_size: 120, lowercase: true}
batching: {max_sequence_length: 16}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 20}
training: {train_steps: 1}
"""
NAMES, PLACES = ("anna", "ben", "carla", "dora"), ("park", "house", "school", "garden")
SENTENCES = [f"{name.title()} goes to the {place}." for name in NAMES for place in PLACES]
DOCUMENTS = ["\n".join(SENTENCES[at : at + 4]) for at in range(0, 16, 4)] * 2
PAIRED, SINGLE = "pretraining.next_sentence=true", "pretraining.next_sentence=false"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    kinds = {
        "wordpiece": TokenizerSettings(kind="wordpiece", max_vocabulary_size=120, lowercase=True),
        "subwords": TokenizerSettings(kind="subwords", max_vocabulary_size=80, lowercase=True, model="bpe"),
    }
    return {
        kind: train_tokenizer(
            settings, CleaningSettings(), DOCUMENTS * 9, tmp_path_factory.mktemp(kind), with_mask=True
        )
        for kind, settings in kinds.items()
    }


@pytest.fixture
def build(tmp_path, tokenizers):
    """build("section.key=value", ...) is a task with a model."""

    def build(*overrides, kind="wordpiece"):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        task = Pretrain(load_recipe(tmp_path / "r.yaml", overrides), Vocabulary(tokenizers[kind]))
        generator = np.random.default_rng(0)
        for variable in task.build_model().weights:
            variable.assign(generator.normal(size=variable.shape, scale=0.5))
        return task

    return build


def encode(task, documents=DOCUMENTS):
    return {name: rows.to_list() for name, rows in task.encode({"text": tf.constant(documents)}).items()}


def text_of(task, token_ids):
    return task.tokenizer.detokenize(tf.constant([token_ids])).numpy()[0].decode()


def batch_of(task, documents=DOCUMENTS, padding_rows=1):
    """The features as the training gets them, with rows of nothing but padding."""
    features = {name: rows.to_tensor().numpy() for name, rows in task.encode({"text": tf.constant(documents)}).items()}
    features = {name: np.pad(array, ((0, padding_rows), (0, 0))) for name, array in features.items()}
    return task.corruption()(features, np.arange(len(features["token_ids"])), 0, 0)


def test_a_new_model_knows_how_often_each_token_comes(build):
    """The probabilities of the bias alone are the shares of the tokens, each counted once more than it comes."""
    task = build(SINGLE)
    encoded = task.encode({"text": tf.constant(DOCUMENTS)})["token_ids"].flat_values.numpy()
    task.begin(SimpleNamespace(features={"token_ids": SimpleNamespace(values=encoded)}))
    shares = np.exp(task.model.head.bias.numpy())
    text = encoded[~np.isin(encoded, task.tokenizer.special_ids)]
    counts = np.bincount(text, minlength=task.tokenizer.vocabulary_size)
    np.testing.assert_allclose(shares, (counts + 1) / (counts + 1).sum(), rtol=1e-5)
    assert shares[task.tokenizer.special_ids].max() == shares.min()


def test_features_of_pairs(build):
    task = build(PAIRED)
    features, tokenizer = encode(task), task.tokenizer
    assert sorted(features) == ["next_sentence", "record", "segment_ids", "token_ids"]
    for row, token_ids in enumerate(features["token_ids"]):
        assert len(token_ids) <= 16
        assert token_ids[0] == tokenizer.start_id
        ends = [place for place, token in enumerate(token_ids) if token == tokenizer.end_id]
        assert len(ends) == 2
        assert ends[1] == len(token_ids) - 1
        assert features["segment_ids"][row] == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
        first, second = token_ids[1 : ends[0]], token_ids[ends[0] + 1 : -1]
        document = DOCUMENTS[features["record"][row][0]].lower().replace("\n", " ").replace(".", " .")
        assert text_of(task, first) in document
        if features["next_sentence"][row] == [FOLLOWS]:
            assert f"{text_of(task, first)} {text_of(task, second)}" in document
    assert {label for (label,) in features["next_sentence"]} == {0, 1}
    assert {number for (number,) in features["record"]} == set(range(len(DOCUMENTS)))


def test_features_of_stretches(build):
    task = build(SINGLE)
    features = encode(task)
    assert sorted(features) == ["record", "token_ids"]
    lengths = [len(row) for row in features["token_ids"]]
    assert max(lengths) == 16
    assert min(lengths[:-1]) >= 14
    inside = [token for row in features["token_ids"] for token in row[1:-1] if token != task.tokenizer.end_id]
    assert text_of(task, inside) == " ".join(DOCUMENTS).lower().replace("\n", " ").replace(".", " .")


def test_what_encode_reads_makes_prepared_data_another(build):
    def settings(*overrides):
        return Pretrain.encoding_settings(build(*overrides).recipe)

    first = settings()
    assert settings("batching.max_sequence_length=12") != first
    assert settings(SINGLE) != first
    for other in ("model.max_sequence_length=99", "pretraining.mask=span", "pretraining.mask_share=0.3", "seed=4"):
        assert settings(other) == first, other


def log_softmax(logits):
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def expected_means(task, batch):
    """The mean loss of all hidden tokens, and that of the pairs weighted by how many are hidden in each."""
    hidden = task.model({name: batch[name] for name in ("token_ids", "segment_ids") if name in batch})
    hidden, table = hidden.numpy(), task.model.embedding.table.numpy()
    head, masked, follows, counts = task.model.head, [], [], []
    for row in range(len(hidden)):
        chosen = [
            place
            for place, label in zip(batch["masked_positions"][row], batch["masked_labels"][row], strict=False)
            if label
        ]
        labels = [label for label in batch["masked_labels"][row] if label]
        if not chosen:
            continue
        logits = head.normalization(head.activation(head.dense(hidden[row, chosen]))).numpy() @ table.T + head.bias
        masked += (-log_softmax(np.array(logits))[np.arange(len(labels)), labels]).tolist()
        if "next_sentence" in batch:
            pooled = task.model.pooled(hidden[row : row + 1])
            follows.append(
                -log_softmax(task.model.next_sentence_head(pooled).numpy())[0, batch["next_sentence"][row, 0]]
            )
        counts.append(len(labels))
    return np.mean(masked), np.average(follows, weights=counts) if follows else 0.0


@pytest.mark.parametrize("choice", [PAIRED, SINGLE])
def test_loss_is_that_of_hidden_tokens_and_of_what_follows(build, choice):
    task = build(choice, "pretraining.mask_share=0.4")
    batch = batch_of(task, padding_rows=2)
    losses, weights = Supervised(task)(task.model, batch, training=False)
    masked, follows = expected_means(task, batch)
    total = float(tf.reduce_sum(losses * weights) / tf.reduce_sum(weights))
    assert total == pytest.approx(masked + follows, rel=1e-4)
    assert float(tf.reduce_sum(weights[-2:])) == 0
    assert float(tf.reduce_sum(weights)) == (batch["masked_labels"] != 0).sum()


def test_logits_only_where_tokens_are_hidden(build):
    task = build(SINGLE)
    batch = batch_of(task)
    logits = task.forward(task.model, batch, training=False)
    assert logits.shape == (*batch["masked_positions"].shape, task.tokenizer.vocabulary_size)
    assert batch["masked_positions"].shape[1] < batch["token_ids"].shape[1] / 4


def test_one_batch_can_be_learnt_by_heart(build):
    task = build(PAIRED, "model.hidden_dim=32", "model.intermediate_dim=32", "model.dropout=0")
    for variable in (model := task.build_model()).trainable_variables:
        assert "pooler" not in variable.path or variable.trainable
    batch = {name: tf.constant(array) for name, array in batch_of(task, DOCUMENTS[:2]).items()}
    import keras

    optimizer, objective = keras.optimizers.Adam(0.02), Supervised(task)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses, weights = objective(model, batch, training=True)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    first = float(step())
    for _ in range(80):
        last = float(step())
    sums = {name: float(value) for name, value in task.sums(task.forward(model, batch, False), batch).items()}
    assert first > 4
    assert last < 0.1
    metrics = task.metrics_of_sums(sums)
    assert metrics["masked_accuracy"] == metrics["next_sentence_accuracy"] == 1.0
    assert metrics["perplexity"] < 1.1


def test_without_pairs_no_variable_is_left_without_a_gradient(build):
    task = build(SINGLE)
    batch = {name: tf.constant(array) for name, array in batch_of(task).items()}
    with tf.GradientTape() as tape:
        losses, weights = Supervised(task)(task.model, batch, training=True)
        loss = tf.reduce_sum(losses * weights)
    gradients = tape.gradient(loss, [variable.value for variable in task.model.trainable_variables])
    assert not [v.path for v, g in zip(task.model.trainable_variables, gradients, strict=True) if g is None]


def test_figures_of_a_split_by_hand(build):
    task = build(PAIRED)
    batch = {
        "token_ids": np.int32([[2, 9, 4], [2, 4, 4], [0, 0, 0]]),
        "masked_labels": np.int32([[1, 0], [2, 3], [0, 0]]),
        "next_sentence": np.int32([[1], [0], [0]]),
    }
    masked = np.zeros((3, 2, 4), np.float32)
    masked[0, 0, 1] = masked[1, 0, 2] = masked[1, 1, 1] = 9.0  # right, right, wrong
    follows = np.float32([[0, 5], [0, 5], [5, 0]])  # right, wrong, padding
    sums = {name: float(value) for name, value in task.sums((masked, follows), batch).items()}
    metrics = task.metrics_of_sums(sums)
    assert metrics["masked_accuracy"] == pytest.approx(2 / 3)
    assert metrics["next_sentence_accuracy"] == pytest.approx(1 / 2)
    loss = (2 * math.log(1 + 3 * math.exp(-9)) + 9 + math.log(1 + 3 * math.exp(-9))) / 3
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert set(metrics) == set(Pretrain.metric_names_of(task.recipe)) == set(Pretrain.metric_names)
    assert "next_sentence_accuracy" not in Pretrain.metric_names_of(build(SINGLE).recipe)


def predicting(task, *words):
    """The task with a head that finds these words likely everywhere, the first one most."""
    texts, _ = task.tokenizer.word_parts()
    task.model.embedding.table.assign(tf.zeros_like(task.model.embedding.table))
    bias = np.zeros(len(texts), np.float32)
    for rank, word in enumerate(words):
        bias[texts.index(word)] = 20.0 - rank
    bias[task.tokenizer.special_ids] = 99.0  # never given
    task.model.head.bias.assign(bias)
    return task


@pytest.mark.parametrize("kind", ["wordpiece", "subwords"])
def test_an_answer_fills_masks(build, kind):
    task = predicting(build(kind=kind), "goes", "the")
    texts = ["Anna [MASK] to the Park.", "[MASK], no [mask]  [MASK]!", "As it  is.", "", "[MASK][MASK]"]
    answers = {name: array.numpy() for name, array in task.answer(tf.constant(texts)).items()}
    filled = [text.decode() for text in answers["text"]]
    assert filled[:4] == ["Anna goes to the Park.", "goes, no [mask]  goes!", "As it  is.", ""]
    assert filled[4] == "goesgoes"
    assert list(answers) == ["text", "tokens", "probabilities"]
    assert answers["tokens"].shape == answers["probabilities"].shape == (5, 5)
    assert answers["tokens"][0, :2].tolist() == [b"goes", b"the"]
    size = task.tokenizer.vocabulary_size
    expected = 1 / (1 + math.exp(-1) + (size - 7) * math.exp(-20))
    np.testing.assert_allclose(answers["probabilities"][[0, 1, 4], 0], expected, rtol=1e-4)
    assert set(answers["tokens"][2:4].ravel().tolist()) == {b""}
    assert not answers["probabilities"][2:4].any()


def test_a_piece_that_goes_on_joins_the_word_before(build):
    task = build()
    texts, goes_on = task.tokenizer.word_parts()
    place = goes_on.index(True)
    task.model.embedding.table.assign(tf.zeros_like(task.model.embedding.table))
    task.model.head.bias.assign(np.eye(len(texts), dtype="float32")[place] * 20)
    answer = task.answer(tf.constant(["go [MASK] on"]))["text"].numpy()[0].decode()
    assert answer == f"go{texts[place]} on"


def test_a_mask_after_the_end_of_the_model_stays(build):
    task = predicting(build(), "goes")
    text = "anna " * 13 + "[MASK] [MASK]"
    assert task.answer(tf.constant([text]))["text"].numpy()[0].decode() == "anna " * 13 + "goes [MASK]"


@pytest.mark.parametrize("kind", ["wordpiece", "subwords"])
def test_an_answer_does_not_depend_on_the_others_and_sees_what_training_saw(build, kind):
    task = build(SINGLE, kind=kind)
    texts = ["anna [MASK] to the park.", "", "ben [MASK] [MASK] the [MASK] garden", "dora"]
    together = {name: array.numpy() for name, array in task.answer(tf.constant(texts)).items()}
    for row, text in enumerate(texts):
        for name, array in task.answer(tf.constant([text])).items():
            if array.dtype == tf.string:
                assert np.all(array.numpy()[0] == together[name][row])
            else:
                np.testing.assert_allclose(array[0], together[name][row], atol=1e-5)
    tokenizer = task.tokenizer
    whole = tokenizer.tokenize(tf.constant(["anna goes to the park."])).to_list()[0]
    texts, _ = tokenizer.word_parts()
    place = 1 + next(i for i, token in enumerate(whole) if texts[token] == "goes")
    hidden = [tokenizer.start_id, *whole, tokenizer.end_id]
    hidden[place] = tokenizer.mask_id
    batch = {"token_ids": np.int32([hidden]), "masked_positions": np.int32([[place]])}
    logits = task.forward(task.model, batch, training=False).numpy()[0, 0]
    logits[tokenizer.special_ids] = -np.inf
    best = np.argsort(-logits)[:5]
    assert together["tokens"][0].tolist() == [texts[token].encode() for token in best]
    np.testing.assert_allclose(together["probabilities"][0], np.exp(log_softmax(logits))[best], rtol=1e-3)


def test_questions_hide_one_word_of_a_sentence():
    sentence = "Nobody knows what he had for breakfast on this very day."
    question, reference = ask("Short.\n" + sentence + "\n" + "x" * 500)
    before, mask, after = question.partition(MASK)
    assert reference == sentence
    assert mask
    assert sentence.startswith(before)
    assert sentence.endswith(after)
    assert len(sentence[len(before) : len(sentence) - len(after)].split()) == 1
    assert ask("Short.") is None
    chinese = "我们今天去公园" * 7
    question, _ = ask(chinese)
    assert len(question) == len(chinese) - 1 + len(MASK)
    for number in range(20):  # the word is drawn by the text
        assert f"[{MASK}]" not in ask(f"In {number} the [UNK] [UNK]-[UNK] of [UNK] and [UNK] came to [UNK] again.")[0]


def test_what_does_not_fit_is_refused(build):
    assert build("batching.max_sequence_length=5").max_length == 5
    with pytest.raises(UserError, match=r"model\.max_sequence_length: 4 tokens, .* are too few; 5 are needed"):
        build("model.max_sequence_length=4")
    objective = "training.objective={name: fgm, epsilon: 1.0, around: {name: r_drop, alpha: 1.0}}"
    with pytest.raises(UserError, match=r"training\.objective: r_drop compares one prediction for each position"):
        build(PAIRED, objective)
    task = build(SINGLE, objective)
    batch = {name: tf.constant(array) for name, array in batch_of(task).items()}
    losses, weights = RDrop(task, 0.0, alpha=1.0)(task.model, batch, training=True)
    assert losses.shape == weights.shape == batch["masked_labels"].shape
    with pytest.raises(UserError, match=r"pretraining: masked_share 0\.9 and random_share 0\.2 exceed 1"):
        build("pretraining={masked_share: 0.9, random_share: 0.2}")


def test_names_of_hugging_face(build):
    architecture, heads, labels = build(PAIRED).published_form()
    assert (architecture, sorted(heads), labels) == (
        "BertForPreTraining",
        ["cls.predictions", "cls.seq_relationship"],
        (),
    )
    architecture, heads, _ = build(SINGLE).published_form()
    assert (architecture, sorted(heads)) == ("BertForMaskedLM", ["cls.predictions"])
