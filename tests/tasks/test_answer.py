"""Reading: labels that give the answer back, the best span of all windows by trying each, and answers of its own."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.cleaning import format_report
from kerasllm.data.preparation import find_fields, prepare_data
from kerasllm.data.published import SPECIAL_TOKENS
from kerasllm.data.published import Vocabulary as Wordpieces
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import SquadSettings
from kerasllm.data.tokenizer_training import train_tokenizer
from kerasllm.data.tokenizers import WordpieceTokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.tasks import answer as answer_file
from kerasllm.tasks.answer import Answer
from kerasllm.tasks.classify_text import ClassifyText
from kerasllm.training.objectives import RDrop, Supervised

RECIPE = """
task: answer
data: {source: squad, train: a.json}
answering: {window_stride: 3, max_answer_tokens: 4}
batching: {global_batch_size: 4, max_sequence_length: 16}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 20}
training: {train_steps: 1}
"""
WORDS = ("who", "what", "where", "ada", "cafe", "##s", "wrote", "it", "in", "?", ".", ",", "北", "京", "strasse", "##n")
ODD_WORDS = (
    "Ada",
    "cafe\u0301",
    "CAFÉS",
    "北京",
    "𝔄da",
    "👩\u200d👧",
    "it.",
    "Straße",
    "in",
    "\u05e9\u05b8",
    "wrote",
    "½",
)
SEPARATORS = (" ", "  ", "\n", "\u00a0", " \u200b", "\r\n")


def recipe_with(folder, *overrides):
    (folder / "r.yaml").write_text(RECIPE, encoding="utf-8")
    return load_recipe(folder / "r.yaml", overrides)


@pytest.fixture
def build(tmp_path):
    """build("section.key=value", ...) is a task."""
    tokenizer = WordpieceTokenizer(Wordpieces((*SPECIAL_TOKENS, *WORDS)))
    return lambda *overrides: Answer(recipe_with(tmp_path, *overrides), Vocabulary(tokenizer))


def with_random_weights(task):
    generator = np.random.default_rng(0)
    for variable in task.build_model().weights:
        variable.assign(generator.normal(size=variable.shape))
    return task


def encode(task, *records):
    columns = {
        "question": [record[0] for record in records],
        "context": [record[1] for record in records],
        "answers": [json.dumps([{"text": text, "start": start} for text, start in record[2:]]) for record in records],
    }
    return task.encode({name: tf.constant(column) for name, column in columns.items()})


def batch_of(features, padding_rows=1):
    """The features as the training gets them, with rows of nothing but padding."""
    arrays = {name: rows.to_tensor().numpy() for name, rows in features.items()}
    return {name: np.pad(array, ((0, padding_rows), (0, 0))) for name, array in arrays.items()}


def test_the_sample_of_the_file(build):
    features = encode(build(), ("Who?", "It, Ada wrote.", ("Ada", 4)))
    tokens = [*SPECIAL_TOKENS, *WORDS]
    expected = ["[CLS]", "who", "?", "[SEP]", "it", ",", "ada", "wrote", ".", "[SEP]"]
    assert [tokens[i] for i in features["token_ids"].to_list()[0]] == expected
    assert features["segment_ids"].to_list() == [[0] * 4 + [1] * 6]
    assert features["labels"].to_list() == [[6, 6]]
    assert features["record"].to_list() == features["num_cut_tokens"].to_list() == [[0]]
    assert {rows.dtype for rows in features.values()} == {tf.int32}


def odd_records(number):
    """Contexts of odd Unicode with a span of whole words as the answer, which may not be the first of its kind."""
    generator = np.random.default_rng(3)
    for _ in range(number):
        words = generator.choice(ODD_WORDS, size=generator.integers(1, 25)).tolist()
        gaps = generator.choice(SEPARATORS, size=len(words)).tolist()
        first = int(generator.integers(len(words)))
        last = min(first + int(generator.integers(3)), len(words) - 1)
        pieces = [word + gap for word, gap in zip(words, gaps, strict=True)]
        start = len("".join(pieces[:first]))
        end = len("".join(pieces[:last])) + len(words[last])
        context = "".join(pieces)
        yield "who wrote it?"[: generator.integers(14)], context, (context[start:end], start)


def test_labels_give_the_answer_back(build):
    """Every example that holds the whole answer points to it; every other one to the start of the sequence."""
    task, records = build(), list(odd_records(60))
    features = encode(task, *records)
    windows = task.windows(*(tf.constant([record[i] for record in records]) for i in (0, 1)))
    begins, ends = windows.begins.to_list(), windows.ends.to_list()
    rows = zip(
        features["record"].flat_values.numpy().tolist(),
        features["labels"].to_list(),
        *(array.numpy().tolist() for array in (windows.first_tokens, windows.positions, windows.lengths)),
        strict=True,
    )
    found = set()
    for number, labels, first_token, position, length in rows:
        _, context, (text, start) = records[number]
        tokens = range(first_token, first_token + length)
        of_answer = [i for i in range(len(begins[number])) if begins[number][i] < start + len(text)]
        of_answer = [i for i in of_answer if ends[number][i] > start]
        if not set(of_answer) <= set(tokens):
            assert labels == [0, 0]
            continue
        first, last = (label - position + first_token for label in labels)
        assert (first, last) == (of_answer[0], of_answer[-1])
        given = context[begins[number][first] : ends[number][last]]
        assert given == text.rstrip("\u0301\u05b8"), "marks at the end belong to no token"
        found.add(number)
    assert len(found) > 55, "most are short enough to be whole somewhere"


def test_questions_without_an_answer_and_questions_that_are_cut(build):
    features = encode(
        build(), ("who", "ada wrote it"), ("who", "ada", ("Charles", 0)), ("who " * 9, "ada " * 20, ("ada", 4))
    )
    assert features["labels"].to_list()[:2] == [[0, 0], [0, 0]]
    assert features["record"].flat_values.numpy().tolist() == [0, 1, *[2] * 6]
    # 16 places, 3 special tokens; a question keeps half of what is left, and 9 - 6 tokens go; they are counted once
    assert features["num_cut_tokens"].flat_values.numpy().tolist() == [0, 0, 3, *[0] * 5]
    assert features["labels"].to_list()[2:] == [[9, 9], *[[0, 0]] * 5]


def test_loss_is_the_mean_of_both_cross_entropies(build):
    task = with_random_weights(build())
    batch = batch_of(encode(task, ("who", "ada wrote it in cafe", ("wrote it", 4)), ("who", "ada wrote")))
    logits = task.forward(task.model, batch, training=False).numpy()
    hidden = task.model({name: batch[name] for name in ("token_ids", "segment_ids")})
    plain = np.stack(task.model.head(hidden), axis=1)
    for smoothing in (0.0, 0.2):
        losses, weights = task.loss(tf.constant(logits), batch, smoothing)
        np.testing.assert_array_equal(weights, [[1, 1], [1, 1], [0, 0]])
        assert np.isfinite(losses).all()
        for row, labels in enumerate(([4, 5], [0, 0])):
            length = np.count_nonzero(batch["token_ids"][row])
            for end, label in enumerate(labels):
                z = plain[row, end, :length]
                log_p = z - math.log(np.exp(z).sum())
                expected = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
                np.testing.assert_allclose(losses[row, end], expected, rtol=1e-4)


def test_padding_changes_no_loss(build):
    task = with_random_weights(build())
    records = ("who", "ada", ("ada", 0)), ("who", "ada wrote it in cafe.", ("it in", 10))
    together, alone = batch_of(encode(task, *records), 0), batch_of(encode(task, records[0]), 0)
    for smoothing in (0.0, 0.1):
        values = [task.loss(task.forward(task.model, b, False), b, smoothing)[0][0] for b in (together, alone)]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_objectives_that_compare_two_passes(build):
    task = with_random_weights(build("model.dropout=0", "model.attention_dropout=0"))
    batch = {name: tf.constant(a) for name, a in batch_of(encode(task, ("who", "ada wrote", ("ada", 0)))).items()}
    losses, _ = RDrop(task, 0.0, alpha=2.0)(task.model, batch, training=True)
    plain, _ = Supervised(task)(task.model, batch, training=True)
    np.testing.assert_allclose(losses[:1], plain[:1], rtol=1e-5)


TEXTS = [
    ("who?", "Ada wrote it in the cafe\u0301, in Straße 北京. " * 3),
    ("", "it"),
    ("where was it what " * 4, "CAFÉS 👩\u200d👧 in 北京, 𝔄da. wrote it in it in it in it \u05e9\u05b8"),
    ("what", "  \n "),
    ("what", ""),
    ("who wrote", "Ada " * 40),
]


def brute_force(task, question, context):
    """The score of each span (begin, end in characters) in the window where it is best, and of none."""
    windows = task.windows(tf.constant([question]), tf.constant([context]))
    begins, ends = windows.begins.to_list()[0], windows.ends.to_list()[0]
    batch, is_context = windows.sequences(0, len(windows.pairs))
    log_probabilities = tf.nn.log_softmax(task.forward(task.model, batch, training=False)).numpy()
    spans, none = {}, []
    for row, log_p in enumerate(log_probabilities):
        none.append(float(log_p[:, 0].sum()))
        places = np.flatnonzero(is_context[row])
        shift = int(windows.first_tokens[row] - windows.positions[row])
        for i in places:
            for j in places[(places >= i) & (places < i + task.settings.max_answer_tokens)]:
                key = begins[i + shift], ends[j + shift]
                spans[key] = max(spans.get(key, -math.inf), float(log_p[0, i] + log_p[1, j]))
    return spans, min(none)


def check_answer(context, values, spans, none, settings):
    """Whether an answer is the one that trying each gives; returns whether it is none."""
    text, start, end, score = values
    best = max(spans.values(), default=-math.inf)
    is_none = not spans or (settings.allow_none and none - best > settings.none_threshold)
    assert score == pytest.approx(math.exp(none if is_none else best), rel=1e-3)
    assert text.decode() == context[start:end], "verbatim"
    if is_none:
        assert (start, end) == (0, 0)
    else:
        marks = end - len(context[:end].rstrip("\u0301\u05b8"))
        assert spans.get((start, end), spans.get((start, end - marks))) == pytest.approx(best, abs=1e-4)
    return is_none


def test_the_best_span_over_all_windows(build, monkeypatch):
    task = with_random_weights(build())
    columns = [tf.constant(column) for column in zip(*TEXTS, strict=True)]
    tried = [brute_force(task, *texts) for texts in TEXTS]
    margins = sorted(none - max(spans.values()) for spans, none in tried if spans)
    between = (margins[1] + margins[2]) / 2
    for allow_none, threshold, at_once, expected in [(False, 0.0, 2, 2), (True, between, 32, 4), (True, -99.0, 5, 6)]:
        monkeypatch.setattr(answer_file, "WINDOWS_AT_ONCE", at_once)
        task.settings = task.settings.model_copy(update={"allow_none": allow_none, "none_threshold": threshold})
        outputs = task.answer(*columns)
        assert list(outputs) == ["text", "start", "end", "score"]
        values = zip(*(array.numpy().tolist() for array in outputs.values()), strict=True)
        rows = zip(TEXTS, values, tried, strict=True)
        are_none = [check_answer(context, row, *each, task.settings) for (_, context), row, each in rows]
        assert sum(are_none) == expected


def test_marks_that_follow_belong_to_the_answer(build):
    """The accent is left out by the tokenizer, and still not cut off."""
    task = build("answering.max_answer_tokens=1")
    task.build_model()
    for context in ("cafe\u0301 ", "e\u0301\u0302"):
        outputs = task.answer(tf.constant(["who"]), tf.constant([context]))
        assert outputs["text"].numpy()[0].decode() == context.strip()
        assert int(outputs["end"][0]) == len(context.strip())


def test_an_answer_does_not_depend_on_the_others(build):
    task = with_random_weights(build("answering.allow_none=true"))
    together = task.answer(*(tf.constant(column) for column in zip(*TEXTS, strict=True)))
    for row, (question, context) in enumerate(TEXTS):
        for name, array in task.answer(tf.constant([question]), tf.constant([context])).items():
            if name == "score":
                np.testing.assert_allclose(array[0], together[name][row], rtol=1e-4)
            else:
                assert array.numpy()[0] == together[name].numpy()[row], name


def test_bytes_that_are_no_text(build):
    outputs = with_random_weights(build()).answer(tf.constant([b"\xff"]), tf.constant([b"ada \xff\xc3 it"]))
    text, start, end = (outputs[name].numpy()[0] for name in ("text", "start", "end"))
    assert text.decode() == "ada \ufffd\ufffd it"[start:end]


def test_a_handful_of_questions_is_learnt(build):
    """From strings to strings, over windows and with a question that has no answer."""
    context = "Ada wrote it in cafe\u0301s, in Straße 北京. What it wrote, 𝔄da wrote in Ada?"
    asked = {
        "who?": "Ada",
        "where?": "in Straße 北京",
        "what?": "it",
        "who wrote what?": None,
        "in cafe?": "cafe\u0301s",
    }
    records = [(q, context, *([(a, context.index(a))] if a else [])) for q, a in asked.items()]
    task = build("answering={window_stride: 4, allow_none: true}", "model.dropout=0", "model.attention_dropout=0")
    tf.keras.utils.set_random_seed(1)
    model, batch = task.build_model(), batch_of(encode(task, *records))
    assert len(batch["labels"]) > len(records) + 1
    batch, optimizer = {name: tf.constant(array) for name, array in batch.items()}, tf.keras.optimizers.Adam(0.01)
    variables = model.trainable_variables

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            losses, weights = Supervised(task)(model, batch, training=True)
            loss = tf.reduce_sum(losses * weights)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(150):
        step()
    outputs = task.answer(tf.constant(list(asked)), tf.constant([context] * len(asked)))
    assert [text.decode() for text in outputs["text"].numpy()] == [text or "" for text in asked.values()]
    assert outputs["score"].numpy().min() > 0.5
    references = [json.dumps([{"text": text, "start": 0}] if text else []) for text in asked.values()]
    answers = [{"text": text.decode()} for text in outputs["text"].numpy()]
    assert task.metrics(answers, references) == {"exact_match": 1.0, "f1": 1.0}
    assert task.metrics([{"text": "in 北京"}] * 5, references)["exact_match"] == 0.0


def test_a_tokenizer_without_places_and_too_few_positions_are_refused(build, tmp_path):
    words = train_tokenizer(TokenizerSettings(kind="words"), CleaningSettings(), ["a b"], tmp_path / "words")
    with pytest.raises(UserError, match=r"tokenizer\.kind: words do not say where in a text they stand; use wordpiece"):
        Answer(recipe_with(tmp_path, "tokenizer.kind=words"), Vocabulary(words))
    assert build("batching.max_sequence_length=5").max_length == 5
    with pytest.raises(UserError, match=r"model\.max_sequence_length: 4 tokens, .* are too few; 5 are needed"):
        build("model.max_sequence_length=4")


def test_questions_are_for_no_other_task():
    with pytest.raises(
        UserError, match=r"data\.source: squad has question, answers, context, but the task needs text, "
    ):
        find_fields(SquadSettings(source="squad", train="a.json"), ClassifyText)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """prepare(paragraphs, "section.key=value") is what lies on disk; a paragraph is a context and its questions."""
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))

    def prepare(paragraphs, *overrides):
        paragraphs = [
            {
                "context": context,
                "qas": [
                    {"question": q, "answers": [{"text": text, "answer_start": start} for text, start in answers]}
                    for q, *answers in questions
                ],
            }
            for context, *questions in paragraphs
        ]
        (tmp_path / "a.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}] * 2}))
        wordpiece = "tokenizer={kind: wordpiece, max_vocabulary_size: 60, lowercase: true}"
        split = 'data={source: squad, train: {file: a.json, articles: ":1"}, test: {file: a.json, articles: "1:"}}'
        keep = "cleaning={drop_leaks: false}"
        return prepare_data(recipe_with(tmp_path, wordpiece, split, keep, *overrides), tmp_path)

    return prepare


LONG = " \u00a0e\u0301 first  " + "word  " * 500 + "Ada\u00a0\u00a0L. end"
PARAGRAPHS = [
    (LONG, ["who  was\u00a0it?", ("Ada\u00a0\u00a0L.", LONG.index("Ada"))], ["when was it"]),
    ("Ada wrote", ["who wrote it", ("Charles", 0)], ["who wrote", ("wrote", 0)]),
]


def test_contexts_are_stored_verbatim_and_wrong_answers_are_counted(prepare):
    prepared = prepare(PARAGRAPHS)
    assert prepared.splits == {"train": 3, "test": 4}
    assert prepared.report["train"]["dropped"] == prepared.report["test"]["noted"] == {"missing_answer": 1}
    report = format_report(prepared.report)
    assert "1 dropped: an answer does not occur in its context" in report
    assert 'record 3: who wrote it | [{"text": "Charles", "start": 0}] | Ada wrote' in report
    for split in ("train", "test"):
        examples = prepared.examples(split)
        assert list(examples.texts["context"])[:2] == [LONG] * 2
        assert examples.texts["question"][0] == "who was it?"
        assert json.loads(list(examples.texts["answers"])[-1]) == [{"text": "wrote", "start": 4}]
        rows = range(len(examples))
        records = [int(examples.features["record"][row][0]) for row in rows]
        assert len(rows) > 100, "all of the long context is read"
        assert sorted(set(records)) == list(range(len(examples.texts["context"])))
        labelled = {records[row] for row in rows if examples.features["labels"][row][0]}
        assert labelled == ({0, 2} if split == "train" else {0, 3})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.on_missing_answer=error"], r"paragraphs\[1\]\.qas\[0\] \(T\): answers\[0\]: 'Charles' does not occur"),
        (["data.on_missing_answer=ignore"], r"on_missing_answer: must be 'drop' or 'error', found \"ignore\""),
        (["data.train={file: a.json, articles: '0-3'}"], r"articles: must be a range of numbers such as '0:36'"),
        (["data.train={fil: a.json}"], r"data\.train\.fil: unknown key; did you mean 'file'"),
        (["data.train=b.json"], r"b\.json: no such file; did you mean 'a\.json'\?"),
    ],
)
def test_bad_input(prepare, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(PARAGRAPHS, *overrides)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
