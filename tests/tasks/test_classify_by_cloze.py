"""The task of gaps: the pattern is never cut, the loss by hand, and what is said of words that are no token."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.published import SPECIAL_TOKENS
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.tasks.classify_by_cloze import ClassifyByCloze

RECIPE = """
task: classify_by_cloze
data: {source: table, train: a.csv, columns: {text: text, label: label}}
cloze: {pattern: "{text} so [MASK].", words: {yes: good, no: bad}}
tokenizer: {kind: wordpiece}
batching: {max_sequence_length: 10}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 12, activation: tanh}
training: {train_steps: 1}
"""
PAIR = ("data.columns={text: a, other_text: b, label: c}", 'cloze.pattern="{other_text}? [MASK], {text}"')
TOKENS = (*SPECIAL_TOKENS, *"abcdefgh", "good", "bad", "so", "well", "##s", ".", ",", "?")
IDS = {token: index for index, token in enumerate(TOKENS)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    settings = TokenizerSettings(kind="wordpiece", vocabulary=str(directory / "vocab.txt"))
    return train_tokenizer(settings, CleaningSettings(), (), directory / "tokenizer")


@pytest.fixture
def build(tmp_path, tokenizer):
    """build("section.key=value", ...) is a task whose model has random weights."""

    def build(*overrides, labels=("no", "yes"), tokenizer=tokenizer):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        task = ClassifyByCloze(load_recipe(tmp_path / "r.yaml", overrides), Vocabulary(tokenizer, labels))
        generator = np.random.default_rng(0)
        for variable in task.build_model().weights:
            variable.assign(generator.normal(size=variable.shape))
        return task

    return build


def ids(words):
    return [IDS[word] for word in words.split()]


def filled(task, *texts):
    """The only row, the position of its gap, and what was cut."""
    rows, positions, num_cut = task.fill_pattern(*(tf.constant([text]) for text in texts))
    return rows[0].numpy().tolist(), int(positions[0]), int(num_cut[0])


def test_features(build):
    features = build().encode({"text": tf.constant(["a b", ""]), "label": tf.constant(["yes", "no"])})
    assert features["token_ids"].to_list() == [ids("[CLS] a b so [MASK] . [SEP]"), ids("[CLS] so [MASK] . [SEP]")]
    assert features["mask_positions"].to_list() == [[4], [2]]
    assert features["labels"].to_list() == [[2], [1]]
    assert {rows.dtype for rows in features.values()} == {tf.int32}


@pytest.mark.parametrize("length", range(9))
def test_the_text_is_cut_and_never_the_pattern(build, length):
    words = ["a", "b", "c", "d", "e", "f", "g", "h"][:length]
    kept = words[:5]  # of ten tokens the start, three of the pattern, the gap and the end remain
    row, position, num_cut = filled(build(), " ".join(words))
    assert row == ids(" ".join(["[CLS]", *kept, "so [MASK] . [SEP]"]))
    assert (row[position], num_cut) == (IDS["[MASK]"], length - len(kept))


def test_a_pair_fills_the_pattern_in_its_order(build):
    task = build(*PAIR)
    assert filled(task, "a", "b c") == (ids("[CLS] b c ? [MASK] , a [SEP]"), 4, 0)
    assert filled(task, "a b c d e f", "g h a b") == (ids("[CLS] g h ? [MASK] , a b c [SEP]"), 4, 5)


def test_a_mask_in_the_text_is_not_the_gap(build):
    task = build()
    row, position, _ = filled(task, "a [MASK] b")
    assert row == ids("[CLS] a [MASK] b so [MASK] . [SEP]")
    assert position == 5
    asked = task.answer(tf.constant(["a [MASK] b"]))["probabilities"].numpy()
    hidden = task.model({"token_ids": tf.constant([row])})
    logits = task.model.masked_language_head(hidden[:, 5:6], embedding=task.model.embedding).numpy()[0, 0]
    expected = np.exp(logits[ids("bad good")]) / np.exp(logits[ids("bad good")]).sum()
    np.testing.assert_allclose(asked[0], expected, rtol=1e-5)


def test_the_loss_is_that_of_the_words_of_the_labels_alone(build):
    task = build()
    features = task.encode({"text": tf.constant(["a b", "c"]), "label": tf.constant(["yes", "no"])})
    batch = {name: np.pad(rows.to_tensor().numpy(), ((0, 1), (0, 0))) for name, rows in features.items()}
    losses, weights = task.loss(task.forward(task.model, batch, training=False), batch, label_smoothing=0.0)
    head, table = task.model.masked_language_head, task.model.embedding.table.numpy()
    hidden = task.model({"token_ids": tf.constant(batch["token_ids"])}).numpy()
    for row, (position, word) in enumerate([(4, "good"), (3, "bad")]):
        dense = head.dense.kernel.numpy() @ hidden[row, position] + head.dense.bias.numpy()
        x = np.tanh(dense)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-12) * head.normalization.scale + head.normalization.offset
        scores = {each: table[IDS[each]] @ x + head.bias.numpy()[IDS[each]] for each in ("good", "bad")}
        expected = np.log(sum(np.exp(score - scores[word]) for score in scores.values()))
        np.testing.assert_allclose(losses[row, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(weights, [[1], [1], [0]])


def test_an_answer_is_the_label_of_the_likelier_word_whatever_else_is_asked(build):
    task = build()
    texts = ["a b", "c d e f g h a", "", "h"]
    together = {name: values.numpy() for name, values in task.answer(tf.constant(texts)).items()}
    for row, text in enumerate(texts):
        alone = task.answer(tf.constant([text]))
        np.testing.assert_allclose(alone["probabilities"][0], together["probabilities"][row], atol=1e-5)
        best = together["probabilities"][row].argmax()
        assert together["label"][row] == together["labels"][row][best] == (b"no", b"yes")[best]
        assert together["probability"][row] == together["probabilities"][row].max()
    assert task.metrics([{"label": "no"}, {"label": "yes"}], ["no", "no"])["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cloze.words={yes: good, no: wells}"], r"cloze\.words\.no: 'wells' is well \+ ##s to the tokenizer; take a"),
        (["cloze.words={yes: good, no: odd}"], r"cloze\.words\.no: 'odd' is ⁇ to the tokenizer"),
        (["cloze.words={yes: good, no: ''}"], r"cloze\.words\.no: '' is nothing to the tokenizer"),
        (["cloze.words={yes: good, no: good}"], r"cloze\.words\.no: 'good' is the word of 'yes', too"),
        (["cloze.words={yes: good, nein: bad}"], r"cloze\.words: has no word for the label 'no'; it has yes, nein"),
        (["cloze.words={yes: good, no: bad, nop: so}"], r"'nop' is no label of data\.train; did you mean 'no'"),
        (PAIR[:1], r"cloze\.pattern: has text, and data\.columns has text, other_text"),
        (["batching.max_sequence_length=5"], r"cloze\.pattern: leaves 0 tokens for the text"),
    ],
)
def test_words_and_patterns_that_cannot_be(build, overrides, message):
    with pytest.raises(UserError, match=message):
        build(*overrides)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{text} good", r"cloze\.pattern: .*must have \[MASK\] once, found 0 times"),
        ("[MASK] {text} [MASK]", r"must have \[MASK\] once, found 2 times"),
        ("{txt} {text} [MASK]", r"has \{txt\}, which is no field; use \{text\} or \{other_text\}"),
    ],
)
def test_a_pattern_without_its_parts_is_refused(build, pattern, message):
    with pytest.raises(UserError, match=message):
        build(f"cloze.pattern={pattern!r}")


def test_a_tokenizer_without_a_gap_is_refused(build, tmp_path):
    words = train_tokenizer(TokenizerSettings(kind="words"), CleaningSettings(), ["good bad"], tmp_path / "words")
    with pytest.raises(UserError, match=r"tokenizer\.kind: words has no token for a gap; use wordpiece"):
        build("tokenizer.kind=words", tokenizer=words)
