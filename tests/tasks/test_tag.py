"""The task of entities: labels at first tokens, a loss by hand and by sentences, answers and their places."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.preparation import prepare_data
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.tasks.tag import Tag

RECIPE = """
task: tag
data: {source: conll, train: a.txt}
cleaning: {drop_duplicates: false, drop_leaks: false}
tagging: {decoder: softmax}
batching: {max_sequence_length: 12}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 16}
training: {train_steps: 1}
"""
CRF = "tagging.decoder=crf"
LABELS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
OUTSIDE = LABELS.index("O")
START, END, UNKNOWN = 2, 3, 1
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##b", "##c", "##d", ".", "(", ")"]
IDS = {piece: index for index, piece in enumerate(PIECES)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "given.txt").write_text("".join(f"{piece}\n" for piece in PIECES), encoding="utf-8")
    settings = TokenizerSettings(kind="wordpiece", vocabulary="given.txt", lowercase=True)
    return train_tokenizer(settings, CleaningSettings(), [], folder / "tokenizer", folder)


@pytest.fixture
def build(tmp_path, tokenizer):
    """build("section.key=value", ...) is a task with random weights."""

    def build(*overrides, labels=LABELS):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        task = Tag(load_recipe(tmp_path / "r.yaml", overrides), Vocabulary(tokenizer, labels))
        generator = np.random.default_rng(0)
        for variable in task.build_model().weights:
            variable.assign(generator.normal(size=variable.shape))
        return task

    return build


def encode(task, words, tags):
    return task.encode({"words": tf.constant(words), "tags": tf.constant(tags)})


def test_labels_stand_at_the_first_tokens(build):
    """A word in parentheses is one; a lone soft hyphen has no token, and leaves no trace."""
    features = encode(build(), ["abc (d) ü \u00ad c.", "b"], ["B-PER I-PER O B-LOC O", "B-LOC"])
    ids = [IDS[piece] for piece in ("a", "##b", "##c", "(", "d", ")", "[UNK]", "c", ".")]
    assert features["token_ids"].to_list() == [[START, *ids, END], [START, IDS["b"], END]]
    assert features["labels"].to_list() == [[0, 2, 0, 0, 4, 0, 0, 5, 5, 0, 0], [0, 1, 0]]
    assert features["num_cut_tokens"].to_list() == [[0], [0]]
    assert {rows.dtype for rows in features.values()} == {tf.int32}


def test_words_that_begin_with_a_capital_stand_in_the_second_segment(build):
    """All their tokens do; a letter of two characters is one, and what is cut has none."""
    words = ["Abc d \u00c0b A\u0300 (D aB", "abC D d d d d d D"]
    task = build("tagging.capitals=true")
    assert encode(task, words, ["O O O O O O", "O O O O O O O O"])["segment_ids"].to_list() == [
        [0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0],
    ]
    lower, title = (task.forward(task.model, batch_of(task, [text], ["O"]), training=False) for text in "dD")
    assert not np.allclose(lower[0, 1], title[0, 1])
    assert "segment_ids" not in encode(build(), words[:1], ["O O O O O O"])
    with pytest.raises(UserError, match=r"tagging\.capitals: needs a second segment; model\.num_segments is 1"):
        build("tagging.capitals=true", "model.num_segments=1")


@pytest.mark.parametrize("decoder", ["softmax", "crf"])
def test_what_does_not_fit_is_cut_counted_and_outside(build, decoder):
    task = build(f"tagging.decoder={decoder}", "batching.max_sequence_length=6")
    features = encode(task, ["a ab abc d"], ["B-PER B-PER B-LOC B-LOC"])
    assert features["token_ids"].to_list() == [[START, *(IDS[piece] for piece in ("a", "a", "##b", "a")), END]]
    assert features["labels"].to_list() == [[0, 2, 2, 0, 1, 0]]
    assert features["num_cut_tokens"].to_list() == [[3]]
    answer = task.answer(tf.constant(["a ab abc d", "d d d d c c"]))
    tags = answer["tags"].numpy().tolist()
    assert tags[0][3:] == [b"O", b"", b""]
    assert tags[1][4:] == [b"O", b"O"]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def batch_of(task, words, tags):
    features = encode(task, [*words], [*tags])
    batch = {name: rows.to_tensor().numpy() for name, rows in features.items()}
    return {name: np.pad(array, ((0, 1), (0, 2))) for name, array in batch.items()}


def test_loss_of_each_tag(build):
    task = build()
    batch = batch_of(task, ["ab c", "d"], ["B-PER O", "B-LOC"])
    logits = np.random.default_rng(1).normal(size=(3, 7, 5)).astype("float32")
    losses, weights = task.loss(tf.constant(logits), batch, 0.0)
    expected = -log_softmax(logits)
    np.testing.assert_array_equal(weights, [[0, 1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0] * 7])
    found = [losses[0, 1], losses[0, 3], losses[1, 1]]
    np.testing.assert_allclose(found, [expected[0, 1, 1], expected[0, 3, 4], expected[1, 1, 0]], rtol=1e-5)


def test_loss_of_a_sentence_joins_neighbouring_words(build):
    """Tokens between the words do not count: the sum goes over all sequences of tags of words."""
    task = build(CRF)
    batch = batch_of(task, ["abc \u00ad c", "d"], ["B-PER O I-PER", "B-LOC"])
    logits = np.random.default_rng(1).normal(size=(3, 8, 5)).astype("float32")
    losses, weights = task.loss(tf.constant(logits), batch, 0.0)
    np.testing.assert_array_equal(weights, [[2], [1], [0]])
    transitions, starts, ends = (weight.numpy() for weight in task.model.crf.weights)
    emissions = logits[0, [1, 4]]
    scores = {
        (i, j): starts[i] + emissions[0, i] + transitions[i, j] + emissions[1, j] + ends[j]
        for i, j in itertools.product(range(5), repeat=2)
    }
    expected = np.log(np.exp(list(scores.values())).sum()) - scores[1, 3]
    np.testing.assert_allclose(losses[0, 0] * weights[0, 0], expected, rtol=1e-5)
    assert np.isfinite(losses[2, 0])


@pytest.mark.parametrize("decoder", ["softmax", "crf"])
def test_the_loss_of_parts_adds_up_to_that_of_the_batch(build, decoder):
    task = build(f"tagging.decoder={decoder}")
    words, tags = ["ab c d", "d", "a b c d a"], ["B-PER O B-LOC", "B-LOC", "O O O O B-PER"]

    def total(rows):
        batch = batch_of(task, [words[row] for row in rows], [tags[row] for row in rows])
        losses, weights = task.loss(task.forward(task.model, batch, training=False), batch, 0.0)
        return np.array([tf.reduce_sum(losses * weights), tf.reduce_sum(weights)])

    np.testing.assert_allclose(total([0, 1, 2]), total([0]) + total([1, 2]), rtol=1e-5)
    assert total([0, 1, 2])[1] == 9


TEXTS = ["(abc) d, aÀb\u00ad. 日 \u00ad c", "", "a", "  d\nd 🎉b c c c c c c c c c c c", "d.\tc\t"]


@pytest.mark.parametrize("decoder", ["softmax", "crf"])
def test_an_answer_does_not_depend_on_the_others_and_its_offsets_cut_out_its_entities(build, decoder):
    task = build(f"tagging.decoder={decoder}")
    task.model.head.dense.bias.assign([0, 0, 0, 0, -9])  # few words are outside
    together = {name: array.numpy() for name, array in task.answer(tf.constant(TEXTS)).items()}
    num_entities = 0
    for row, text in enumerate(TEXTS):
        alone = {name: array.numpy()[0] for name, array in task.answer(tf.constant([text])).items()}
        for name, array in alone.items():
            padding = {"entity_starts": -1, "entity_ends": -1, "entity_scores": 0}.get(name, b"")
            found = together[name][row]
            if name != "entities":
                found, rest = found[: len(array)], found[len(array) :]
                assert all(value == padding for value in rest)
            if name == "entity_scores":
                np.testing.assert_allclose(found, array, atol=1e-5)
                assert np.all((array > 0) & (array <= 1))
            else:
                assert np.all(found == array)
        cut = [text[start:end] for start, end in zip(alone["entity_starts"], alone["entity_ends"], strict=True)]
        assert cut == [part.decode() for part in alone["entity_texts"]]
        shown = [
            f"{' '.join(part.split())}/{kind.decode()}" for part, kind in zip(cut, alone["entity_types"], strict=True)
        ]
        assert alone["entities"].decode() == " | ".join(shown)
        assert len(alone["tags"]) == len(alone["word_texts"])
        num_entities += len(cut)
    assert num_entities >= 3
    assert together["word_texts"][4, :2].tolist() == [b"d.", b"c"]


def test_what_makes_an_entity_and_its_score(build):
    """As conlleval has it: an I- after another type begins one; the score is the mean over its words."""
    task = build()
    tags = tf.ragged.constant([[3, 3, 2, 4, 0], [], [2, 0, 2]], tf.int32, row_splits_dtype=tf.int64)
    found = task.find_entities(tags)
    assert found.begins.to_list() == [[True, False, True, False, True], [], [True, True, False]]
    assert found.ends.to_list() == [[False, True, True, False, True], [], [True, False, True]]
    assert found.types.numpy().tolist() == [b"PER", b"LOC", b"LOC", b"LOC", b"LOC"]
    means = found.means_of(tf.constant([0.2, 0.4, 0.9, 0.1, 0.8, 0.5, 0.6, 1.0]))
    np.testing.assert_allclose(means, [0.3, 0.9, 0.8, 0.5, 0.8], rtol=1e-6)


def test_decoding_with_transitions_gives_no_tag_that_bio_forbids(build):
    """The emissions prefer I-PER everywhere; softmax gives it, the random field may not at the beginning."""
    for overrides, expected in ((), ["I-PER"] * 3), ((CRF,), ["B-PER", "I-PER", "I-PER"]):
        task = build(*overrides)
        head = task.model.head.dense
        head.kernel.assign(tf.zeros_like(head.kernel))
        head.bias.assign([0.0, 1.0, 0.0, 3.0, 0.0])
        if overrides:
            for variable in task.model.crf.weights:
                variable.assign(tf.zeros_like(variable))
        answer = task.answer(tf.constant(["a ab\u00ad (c)"]))
        tags = [tag.decode() for tag in answer["tags"][0].numpy()]
        assert tags[:2] == expected[:2]
        if not overrides:
            probability = np.exp(3) / (np.exp(3) + np.exp(1) + 3)
            np.testing.assert_allclose(answer["entity_scores"], [[probability]], rtol=1e-5)
            assert answer["entity_types"].numpy().tolist() == [[b"PER"]]


@pytest.mark.parametrize("setting", ["decoder=softmax", "decoder=crf", "capitals=true"])
def test_every_word_of_a_record_gets_its_tag(build, setting):
    """Whatever punctuation it has, and even if it has no token at all."""
    task = build(f"tagging.{setting}")
    words = ["(ab) c.d \u00ad d.", "\u00ad", "\u200b . ...", "D."]
    answers = answers_of(task, *task.questions({"words": words, "tags": []})[0])
    assert [[word for word in answer["word_texts"] if word] for answer in answers] == [text.split() for text in words]
    tags = [[tag for tag in answer["tags"] if tag] for answer in answers]
    assert [len(row) for row in tags] == [len(text.split()) for text in words]
    assert (tags[0][2], tags[1], tags[2][0]) == ("O", ["O"], "O")
    batch = batch_of(task, words, [" ".join(row) for row in tags])
    logits = task.forward(task.model, batch, training=False)
    if "crf" not in setting:  # what is measured is what was learnt: the same tokens, the same places
        best = tf.argmax(logits, axis=-1).numpy() + 1
        assert np.all((batch["labels"] == 0) | (batch["labels"] == best))
    references = [" ".join(row) for row in tags]
    assert task.metrics(answers, references)["accuracy"] == 1
    assert task.metrics(answers, [*references[:1], "B-LOC", *references[2:]])["accuracy"] < 1


def test_a_published_form(build):
    task = build()
    architecture, heads, labels = task.published_form()
    assert (architecture, heads["classifier"], labels) == ("BertForTokenClassification", task.model.head, LABELS)
    with pytest.raises(UserError, match=r"tagging\.decoder: Hugging Face's BertForTokenClassification has no crf"):
        build(CRF).published_form()
    with pytest.raises(UserError, match=r"tagging\.capitals: Hugging Face's BertForTokenClassification reads all"):
        build("tagging.capitals=true").published_form()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.label_smoothing=0.1"], r"training\.label_smoothing: a crf has one right sequence of tags"),
        (
            ["training.objective={name: r_drop, alpha: 1.0}"],
            r"training\.objective: r_drop compares the probabilities of",
        ),
        (["ticks=[{at_step: 0, label_smoothing: 0.1}]"], r"label_smoothing: a crf has one right"),
        (["model.max_sequence_length=2"], r"model\.max_sequence_length: 2 tokens, .* are too few; 3 are needed"),
    ],
)
def test_a_training_that_does_not_fit(build, overrides, message):
    with pytest.raises(UserError, match=message):
        build(CRF, *overrides)
    if "max_sequence_length" not in overrides[0]:
        build(*overrides)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))

    def prepare(content, *overrides, name="a.txt"):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        (tmp_path / name).write_text(content, encoding="utf-8")
        return prepare_data(load_recipe(tmp_path / "r.yaml", ["tokenizer.kind=words", *overrides]), tmp_path)

    return prepare


TABLE = "data={source: table, train: a.jsonl, columns: {words: w, tags: t}, join_lists: true}"


def test_preparing_keeps_repeated_sentences_and_knows_the_inside_of_each_type(prepare):
    prepared = prepare("a  B-X\n\nb O\n\na B-X\n\na\u0301 O\n", "data.test=a.txt")
    assert prepared.splits == {"train": 4, "test": 4}
    assert prepared.manifest["num_labels"] == 3
    examples = prepared.examples("train")
    assert [examples.features["labels"][row].tolist() for row in range(4)] == [
        [0, 1, 0],
        [0, 3, 0],
        [0, 1, 0],
        [0, 3, 0],
    ]
    assert examples.texts["words"][3] == "\u00e1"


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        ("a B-X\nb I-Y\n", [], r"a\.txt:2: tag 'I-Y' after 'B-X' is not bio"),
        ("a O\n", [], r"data\.train: has no other tag than 'O'; there must be entities to learn"),
        ("a\u00a8 B-X\n", ["cleaning.normalize_unicode=NFKC"], r"data\.train: record 1: 2 words, but 1 tags"),
        (
            '{"w": ["a"], "t": ["B-X"]}\n{"w": ["a", "b"], "t": ["O"]}\n',
            [TABLE],
            r"data\.train: record 2: 2 words, but 1",
        ),
        (
            '{"w": ["a"], "t": ["I-X"]}\n',
            [TABLE],
            r"data\.train: record 1: tag 'I-X' at the beginning of a sentence is no",
        ),
        (
            '{"w": "a  b", "t": "O O"}\n',
            [TABLE, "cleaning.collapse_spaces=false"],
            r"record 1: more than a space between",
        ),
    ],
)
def test_bad_input(prepare, tmp_path, content, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(content, *overrides, name="a.jsonl" if TABLE in overrides else "a.txt")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def answers_of(task, texts):
    """As `answer_texts` gives them, without the time to trace a graph."""
    outputs = {name: array.numpy().tolist() for name, array in task.answer(tf.constant(texts)).items()}
    return [
        {
            name: [each.decode() if isinstance(each, bytes) else each for each in rows[row]]
            for name, rows in outputs.items()
            if name != "entities"
        }
        for row in range(len(texts))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["softmax", "crf"])
def test_a_few_sentences_are_learnt_from_strings(build, decoder):
    """The same word is of another type in another place."""
    task = build(f"tagging.decoder={decoder}", "model.dropout=0", "model.attention_dropout=0")
    words = ["a abc d .", "d abc a .", "b c", "(abc) d", "c d a b c d"]
    tags = ["O B-PER I-PER O", "O B-LOC O O", "O O", "B-LOC B-PER", "B-LOC I-LOC I-LOC O O O"]
    batch = {name: tf.constant(array) for name, array in batch_of(task, words, tags).items()}
    variables = [variable.value for variable in task.build_model().trainable_variables]
    optimizer = tf.keras.optimizers.Adam(0.02)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            losses, weights = task.loss(task.forward(task.model, batch, training=True), batch, 0.0)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        return loss, tape.gradient(loss, variables)

    for _ in range(60):
        _, gradients = step()
        optimizer.apply(gradients, task.model.trainable_variables)
    assert task.metrics(answers_of(task, *task.questions({"words": words, "tags": []})[0]), tags)["f1"] == 1.0
    (raw,) = answers_of(task, ["A (abc) d."])
    assert raw["word_texts"] == ["A", "(", "abc", ")", "d", "."]
