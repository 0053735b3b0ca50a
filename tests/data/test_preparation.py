"""The whole of `prepare`: what lies on disk, when it is made anew, and that a failure leaves nothing behind."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kerasllm.data.batching import BatchStream
from kerasllm.data.preparation import find_fields, preparation_key, prepare_data
from kerasllm.data.settings import BatchingSettings, CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import BuiltInSettings, ParallelTextSettings, TableSettings
from kerasllm.data.store import Prepared
from kerasllm.data.vocabulary import load_vocabulary
from kerasllm.errors import UserError
from kerasllm.task import Task
from kerasllm.training.objective_settings import SupervisedSettings

FIELDS = ("source", "target")


class TaskStub(Task):
    fields = text_fields = FIELDS
    optional_fields = ("other",)

    def encode(self, texts):
        return encode(self.vocabulary, texts)


SPLITS = {
    "train": [("a dog", "ein Hund"), ("a cat", "eine Katze"), ("a dog", "ein Hund"), ("leak", "Leck"), ("", "leer")],
    "test": [("leak", "Leck"), ("zebra", "Zebra")],
}
DATA = ParallelTextSettings(
    source="parallel_text",
    train={"source": "train.en", "target": "train.de"},
    test={"source": "test.en", "target": "test.de"},
)


def encode(vocabulary, texts):
    import tensorflow as tf

    tokenizer = vocabulary.tokenizer
    source, target = (tokenizer.tokenize(texts[field]) for field in FIELDS)
    end = tf.fill([source.nrows(), 1], tokenizer.end_id)
    return {
        "encoder_token_ids": tf.concat([source, end], axis=1),
        "decoder_token_ids": tf.concat([target, end], axis=1),
    }


def recipe(**sections):
    sections.setdefault("data", DATA)
    sections.setdefault("cleaning", CleaningSettings())
    sections.setdefault("tokenizer", TokenizerSettings(kind="words"))
    return SimpleNamespace(task="translate", task_class=TaskStub, **sections)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))
    for split, rows in SPLITS.items():
        for language, texts in zip(("en", "de"), zip(*rows, strict=True), strict=True):
            (tmp_path / f"{split}.{language}").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return tmp_path


def prepare(folder, **sections):
    return prepare_data(recipe(**sections), folder)


def test_what_lies_on_disk(folder):
    prepared = prepare(folder)
    assert prepared.directory.parent == folder / "cache" / "prepared"
    assert prepared.splits == {"train": 2, "test": 2}
    assert prepared.report["train"]["dropped"] == {"duplicate": 1, "leak": 1, "empty": 1}
    vocabulary = load_vocabulary(prepared.directory)
    tokenizer = vocabulary.tokenizer
    assert (
        prepared.vocabulary_size
        == tokenizer.vocabulary_size
        == 4 + len({"a", "dog", "cat", "ein", "eine", "Hund", "Katze"})
    )
    train, test = prepared.examples("train"), prepared.examples("test")
    assert [train.texts["source"][n] for n in range(len(train))] == ["a dog", "a cat"]
    assert list(test.texts["target"]) == ["Leck", "Zebra"]
    assert list(train.features) == ["encoder_token_ids", "decoder_token_ids"]
    assert train.lengths.tolist() == [[3, 3], [3, 3]]
    for examples in (train, test):
        for row in range(len(examples)):
            texts = {field: [examples.texts[field][row]] for field in FIELDS}
            for name, ids in encode(vocabulary, texts).items():
                assert examples.features[name][row].tolist() == ids[0].numpy().tolist()
    unknown = tokenizer.unknown_id  # the vocabulary was learnt from the training split alone
    assert test.features["encoder_token_ids"][1].tolist() == [unknown, tokenizer.end_id]


def test_the_same_is_prepared_once(folder):
    first = prepare(folder)
    assert not first.from_cache
    written = first.directory.stat().st_mtime_ns
    second = prepare(folder)
    assert second.from_cache
    assert second.directory == first.directory
    assert second.directory.stat().st_mtime_ns == written
    assert second.manifest == first.manifest


def test_a_second_prepare_loads_no_tensorflow(folder):
    prepare(folder)
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(folder)!r})
from types import SimpleNamespace
from kerasllm.data.preparation import prepare_data
from kerasllm.data.settings import CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import ParallelTextSettings
from kerasllm.task import Task
class TaskStub(Task):
    fields = {FIELDS!r}
recipe = SimpleNamespace(
    task="translate", task_class=TaskStub, cleaning=CleaningSettings(),
    tokenizer=TokenizerSettings(kind="words"), data=ParallelTextSettings(**{DATA.model_dump()!r}),
)
prepared = prepare_data(recipe, {str(folder)!r})
assert prepared.from_cache
assert list(prepared.examples("train").texts["source"]) == ["a dog", "a cat"]
heavy = {{"tensorflow", "keras", "tensorflow_text", "pyarrow", "sentencepiece"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_key_follows_every_setting_and_the_contents(folder):
    def key(task="translate", **sections):
        one = recipe(**sections)
        one.task = task
        return preparation_key(one, folder)

    first = key()
    others = [
        key(task="summarize"),
        key(data=DATA.model_copy(update={"test": None})),
        key(data=BuiltInSettings(source="built_in", name="dates", train=5)),
        key(data=BuiltInSettings(source="built_in", name="dates", train=5, seed=1)),
        key(cleaning=CleaningSettings(max_characters=9)),
        key(tokenizer=TokenizerSettings(kind="characters")),
        key(tokenizer=TokenizerSettings(kind="words", max_vocabulary_size=99)),
    ]
    for split in SPLITS:
        text = (folder / f"{split}.de").read_text()
        (folder / f"{split}.de").write_text(text.replace("Leck", "Loch"))
        others.append(key())
        (folder / f"{split}.de").write_text(text)
    assert len({first, *others}) == 1 + len(others)
    assert key() == first
    (folder / "elsewhere").mkdir()
    for file in folder.glob("t*.*"):
        file.rename(folder / "elsewhere" / file.name)
    assert preparation_key(recipe(), folder / "elsewhere") == first  # contents count, not where they lie


@pytest.mark.parametrize("when", ["reading", "tokenizing"])
def test_a_failure_leaves_nothing_half_written(folder, when):
    class Failing(TaskStub):
        def encode(self, texts):
            raise UserError("tokenizing failed")

    if when == "reading":
        (folder / "train.de").write_text("nur eine Zeile\n")
        with pytest.raises(UserError, match=r"train\.en has 5 lines, .*train\.de has 1 lines"):
            prepare(folder)
    else:
        failing = recipe()
        failing.task_class = Failing
        with pytest.raises(UserError, match="tokenizing failed"):
            prepare_data(failing, folder)
    assert list((folder / "cache").rglob("*.*")) == []
    assert list((folder / "cache" / "prepared").iterdir()) == []


def test_nothing_left_after_cleaning(folder):
    (folder / "train.en").write_text("leak\n\n\n\n\n")
    (folder / "train.de").write_text("Leck\n\n\n\n\n")
    with pytest.raises(UserError, match=r"data\.train: cleaning leaves no record; .*1 dropped: .*4 dropped: ") as error:
        prepare(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_cache_is_noticed(folder):
    directory = prepare(folder).directory
    file = directory / "train" / "feature.encoder_token_ids.values"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        UserError, match=r"feature\.encoder_token_ids\.values: has \d+ bytes instead of \d+; .*run prepare"
    ):
        prepare(folder).examples("train")


def test_the_vocabulary_comes_from_texts_spread_over_all_fields(folder):
    rows = [f"en{n}\tde{n}" for n in range(100)]
    (folder / "a.tsv").write_text("\n".join(["source\ttarget", *rows]) + "\n")
    data = TableSettings(source="table", train="a.tsv", columns={field: field for field in FIELDS})
    prepared = prepare(folder, data=data, tokenizer=TokenizerSettings(kind="words", max_training_sentences=20))
    words = json.loads((prepared.directory / "tokenizer" / "vocabulary.json").read_text())
    assert sorted(words) == sorted(f"{language}{n}" for language in ("en", "de") for n in range(0, 100, 10))


def test_dates_from_the_recipe_to_batches(folder):
    data = BuiltInSettings(source="built_in", name="dates", train=300, validation=20)
    prepared = prepare(folder, data=data, tokenizer=TokenizerSettings(kind="characters"))
    assert prepared.splits == {"train": 300, "validation": 20}
    examples = Prepared(prepared.directory).examples("train")
    assert set(examples.features["decoder_token_ids"].lengths) == {11}  # 2021-03-05 and the end
    stream = BatchStream(examples, BatchingSettings(tokens_per_batch=400, max_sequence_length=40), seed=0)
    assert sum(map(len, stream.batches(0))) + stream.num_too_long == 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DATA.model_copy(update={"train": {"source": "a", "targt": "b"}}),
            r"data\.train\.targt: .*did you mean 'target'",
        ),
        (
            DATA.model_copy(update={"train": {"source": "a"}}),
            r"data\.train\.target: is missing; the task needs source, t",
        ),
        (TableSettings(source="table", train="a.csv", columns={"target": "b"}), r"data\.columns\.source: is missing"),
    ],
)
def test_the_recipe_must_name_the_fields_of_the_task(data, message):
    with pytest.raises(UserError, match=message):
        find_fields(data, TaskStub)


@pytest.fixture
def pictures():
    """The recipe of a task without text."""
    from kerasllm.label_task import ClassificationSettings
    from kerasllm.picture_task import PictureSettings
    from kerasllm.tasks.classify_image import ClassifyImage

    found = recipe(
        data=BuiltInSettings(source="built_in", name="digits", train=40, test=5),
        picture=PictureSettings(height=8, width=8, channels=1),
        classification=ClassificationSettings(),
        batching=BatchingSettings(global_batch_size=4),
        training=SimpleNamespace(objective=SupervisedSettings()),
    )
    found.task, found.task_class = "classify_image", ClassifyImage
    return found


def test_a_task_without_text_has_no_tokenizer(folder, pictures):
    """The pictures are stored as they were encoded, and as pixels."""
    from kerasllm.data.digits import generate_digits

    prepared = prepare_data(pictures)
    assert not (prepared.directory / "tokenizer").exists()
    assert prepared.vocabulary_size is None
    examples = prepared.examples("test")
    for row, record in enumerate(generate_digits("test", 5, seed=0)):
        assert examples.texts["image"][row] == record["image"]
        pixels = np.array(Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(examples.features["image"][row], pixels.ravel())
        assert examples.features["labels"][row].tolist() == [int(record["label"]) + 1]
    assert examples.features["image"].values.dtype == np.uint8
    assert examples.token_lengths.max() == 1, "pixels are no tokens"


def test_damaged_pictures_are_dropped_from_every_split(folder, pictures):
    from kerasllm.data.digits import generate_digits
    from kerasllm.data.source_settings import PicturesSettings

    for number, record in enumerate(generate_digits("train", 12, seed=0)):
        for split in ("train", "test"):
            path = folder / split / record["label"] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record["image"][:50] if number == 3 else record["image"])
    pictures.data = PicturesSettings(source="pictures", train="train", test="test")
    pictures.cleaning = CleaningSettings(drop_leaks=False)
    prepared = prepare_data(pictures, folder)
    for split in ("train", "test"):
        report = prepared.report[split]
        assert (report["read"], report["kept"], report["dropped"]) == (12, 11, {"damaged": 1})
        assert "03.png" in report["examples"]["damaged"][0]
        assert len(prepared.examples(split)) == 11


def test_a_built_in_set_of_another_task_is_refused():
    digits = BuiltInSettings(source="built_in", name="digits", train=9)
    with pytest.raises(UserError, match=r"data.name: digits has image, label, name, but the task needs source, target"):
        find_fields(digits, TaskStub)


class Classify(Task):
    """A text, a number, and labels with a comma between them."""

    fields = ("text", "label", "amount")
    text_fields, label_field = ("text",), "label"

    @classmethod
    def labels_in(cls, recipe, text):
        return text.split(",")

    def encode(self, texts):
        import tensorflow as tf

        vocabulary = self.vocabulary

        names = tf.strings.split(texts["label"], ",")
        return {
            "token_ids": vocabulary.tokenizer.tokenize(texts["text"]),
            "labels": names.with_flat_values(vocabulary.number_labels(names.flat_values)),
            "amount": tf.RaggedTensor.from_tensor(tf.strings.to_number(texts["amount"])[:, None]),
        }


def classify(folder, test_label):
    (folder / "train.csv").write_text('text,label,amount\nwarm,"sun,dry",0.25\nwet,rain,-3\n')
    (folder / "test.csv").write_text(f"text,label,amount\nwarm,{test_label},1e-3\n")
    columns = {name: name for name in Classify.fields}
    data = TableSettings(source="table", train="train.csv", test="test.csv", columns=columns)
    labelled = recipe(data=data)
    labelled.task_class = Classify
    return prepare_data(labelled, folder)


def test_labels_are_numbered_and_numbers_stay_numbers(folder):
    prepared = classify(folder, "rain")
    vocabulary = load_vocabulary(prepared.directory)
    assert vocabulary.labels == ("dry", "rain", "sun")
    assert vocabulary.tokenizer.vocabulary_size == 4 + 2, "labels are no words"
    features = prepared.examples("train").features
    assert [features["labels"][row].tolist() for row in range(2)] == [[2, 0], [1]]
    assert [features["amount"][row].tolist() for row in range(2)] == [[0.25], [-3.0]]
    stream = BatchStream(prepared.examples("train"), BatchingSettings(global_batch_size=2), seed=0)
    (batch,) = stream.parts(np.arange(2))
    assert {name: array.dtype.name for name, array in batch.items()} == stream.feature_types
    assert vocabulary.name_labels(np.int32([2, 0])).numpy().tolist() == [b"sun", b"dry"]


class ReadWords(Task):
    """An example for each word of a text that has more than one."""

    fields = text_fields = ("text",)

    def encode(self, texts):
        import tensorflow as tf

        token_ids = self.vocabulary.tokenizer.tokenize(texts["text"])
        rows = tf.cast(token_ids.value_rowids(), tf.int32)
        several = tf.gather(token_ids.row_lengths() > 1, rows)
        features = {"token_ids": token_ids.flat_values[several], "record": rows[several]}
        return {name: tf.RaggedTensor.from_tensor(values[:, None]) for name, values in features.items()}


def test_a_record_may_give_several_examples_or_none(folder):
    texts = [f"word{number} end" for number in range(1030)]  # more than a chunk
    texts[1:1] = ["alone"]
    (folder / "texts.csv").write_text("".join(f"{text}\n" for text in ["text", *texts]))
    words = recipe(data=TableSettings(source="table", train="texts.csv", columns={"text": "text"}))
    words.task_class = ReadWords
    examples = prepare_data(words, folder).examples("train")
    assert (len(examples), len(examples.texts["text"])) == (2060, 1031)
    assert [examples.record(row)["text"] for row in (0, 1, 2, 3, -1)] == [texts[n] for n in (0, 0, 2, 2, -1)]


def test_a_label_that_training_does_not_have(folder):
    with pytest.raises(
        UserError, match=r"data\.test: record 1 \('.*'\): label 'rein' does not .*data\.train; .*'rain'"
    ):
        classify(folder, "rein")
    assert list((folder / "cache" / "prepared").iterdir()) == []


def test_a_published_vocabulary_counts_by_its_content(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "ein", "hund"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    wordpiece = recipe(tokenizer=TokenizerSettings(kind="wordpiece", vocabulary="vocab.txt", lowercase=True))
    prepared = prepare_data(wordpiece, folder)
    assert prepared.vocabulary_size == 9
    assert prepared.examples("train").features["decoder_token_ids"][0].tolist() == [7, 8, 3]
    before = preparation_key(wordpiece, folder)
    (folder / "vocab.txt").write_text("\n".join([*tokens, "cat"]))
    assert preparation_key(wordpiece, folder) != before
