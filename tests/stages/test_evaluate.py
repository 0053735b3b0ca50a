"""A split is measured by sums over all of its tokens, and its predictions stay in its order."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kerasllm.data.settings import BatchingSettings
from kerasllm.data.store import Examples, RaggedArray, RaggedTexts, RaggedWriter
from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory
from kerasllm.stages import evaluate as stage
from kerasllm.task import Task

SOURCES = ["a middling text", "b", "by far the longest of all of them, beyond doubt", "cc", ""]
REFERENCES = ["A MIDDLING TEXT", "x", "y", "CC", ""]
TARGETS = [[1, 5, 6, 2], [1, 2], [1, 9, 9, 9, 9, 9, 2], [1, 7, 2], [1, 2]]


class ShoutTask(Task):
    """Answers in capitals; the loss at each label is a tenth of its id, in nats."""

    inputs = {"text": "source"}
    reference = "target"
    metric_names = ("exact_match", "perplexity")
    unvaried_outputs = ("language",)

    def __init__(self):
        self.tokenizer = None

    def answer(self, texts):
        import tensorflow as tf

        scores = tf.cast(tf.strings.length(texts), tf.float32)
        return {"text": tf.strings.upper(texts), "score": scores, "language": tf.fill(tf.shape(texts), "en")}

    def asked_in_evaluation(self):
        return self

    def forward(self, model, batch, training):
        assert not training

    def loss(self, logits, batch, label_smoothing):
        import tensorflow as tf

        assert label_smoothing == 0.0
        labels = batch["decoder_token_ids"][:, 1:]
        return tf.cast(labels, tf.float32) / 10.0 + 100.0 * tf.cast(labels == 0, tf.float32), tf.cast(
            labels != 0, tf.float32
        )

    def metrics(self, answers, references):
        return {"exact_match": float(np.mean([a["text"] == r for a, r in zip(answers, references, strict=True)]))}

    def baseline(self, training, columns, references):
        assert list(training["source"]) == columns[0] == SOURCES
        assert references == REFERENCES
        return {"baseline_exact_match": 0.25}

    def pictures(self, answers, references, columns):
        from matplotlib.figure import Figure

        assert [answer["text"] for answer in answers] == [source.upper() for source in SOURCES]
        assert references == REFERENCES
        return {"shouting": Figure()}


def write_examples(directory: Path) -> Examples:
    with RaggedWriter(directory / "source", "uint8") as writer:
        writer.append_texts(SOURCES)
    with RaggedWriter(directory / "target", "uint8") as writer:
        writer.append_texts(REFERENCES)
    for name, rows in {"encoder": [[4] * (1 + len(text)) for text in SOURCES], "decoder": TARGETS}.items():
        with RaggedWriter(directory / name, "int32") as writer:
            writer.append(np.concatenate(rows).astype(np.int32), np.array([len(row) for row in rows]))
    features = {f"{name}_token_ids": RaggedArray(directory / name) for name in ("encoder", "decoder")}
    return Examples(features, {field: RaggedTexts(directory / field) for field in ("source", "target")})


@pytest.fixture
def stub_run(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    for directory in (run.tokenizer_path, tmp_path / "prepared" / "tokenizer"):
        directory.mkdir(parents=True)
        (directory / "tokenizer.json").write_text("{}")
    recipe = SimpleNamespace(batching=BatchingSettings(tokens_per_batch=120, max_sequence_length=60), seed=0)
    loaded = SimpleNamespace(directory=run, recipe=recipe, task=ShoutTask(), model=None)
    examples = write_examples(tmp_path)
    prepared = SimpleNamespace(examples=lambda split: examples, directory=tmp_path / "prepared")
    monkeypatch.setattr(stage, "load_run", lambda run_dir, overrides, data_dir: loaded)
    monkeypatch.setattr(stage, "prepare_data", lambda recipe, data_dir: prepared)
    monkeypatch.setattr("kerasllm.runs.trained_run.BATCH_SIZE", 2)
    return tmp_path


def test_figures_are_sums_over_all_tokens(stub_run):
    report = stage.evaluate(stub_run / "run")
    # Labels: 5 6 2 | 2 | 9 9 9 9 9 2 | 7 2 | 2
    assert report["tokens"] == 13
    assert report["loss"] == pytest.approx((13 + 2 + 47 + 9 + 2) / 10 / 13)
    assert report["perplexity"] == pytest.approx(math.exp(7.3 / 13))
    assert report["exact_match"] == pytest.approx(3 / 5)
    assert report["baseline_exact_match"] == 0.25
    assert report["records"] == 5


def test_predictions_are_in_the_order_of_the_split(stub_run):
    report = stage.evaluate(stub_run / "run", "validation")
    assert report["predictions"] == str(stub_run / "run" / "predictions" / "validation.jsonl")
    lines = Path(report["predictions"]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": source, "reference": reference, "prediction": source.upper(), "score": float(len(source))}
        for source, reference in zip(SOURCES, REFERENCES, strict=True)
    ]


def test_pictures_of_the_task_lie_beside_the_predictions(stub_run):
    report = stage.evaluate(stub_run / "run", "validation")
    assert report["pictures"] == [str(stub_run / "run" / "predictions" / "validation_shouting.png")]
    assert Path(report["pictures"][0]).read_bytes().startswith(b"\x89PNG")


def test_a_report_has_its_tables_apart_and_no_lists(capsys):
    report = {"loss": 0.51234, "per_label": {"good": {"f1": 0.25, "records": 3}}}
    stage.show_report(report, [{"text": "x", "prediction": "good", "probabilities": [0.98765]}])
    shown = capsys.readouterr().err
    assert "0.5123" in shown
    assert [line.split() for line in shown.splitlines() if "good" in line] == [["good", "0.25", "3"], ["x", "good"]]
    assert "0.98" not in shown


def test_of_a_long_text_a_report_shows_the_beginning(capsys):
    stage.show_report({"loss": 1.0}, [{"text": "one\ttwo " + 1000 * "z", "prediction": "good"}])
    shown = capsys.readouterr().err
    assert "one two" in " ".join(shown.split())
    assert shown.count("z") == stage.MAX_SHOWN - len("one two …")


def test_changed_training_data_is_refused(stub_run):
    (stub_run / "prepared" / "tokenizer" / "tokenizer.json").write_text('{"kind": "words"}')
    with pytest.raises(UserError, match=r"its training data has changed.*--data-dir"):
        stage.evaluate(stub_run / "run")
    assert not (stub_run / "run" / "predictions").exists()


def test_trained_run_is_measured_as_in_training(trained_run):
    report = stage.evaluate(trained_run, "validation")
    in_training = json.loads((trained_run / "manifest.json").read_text())["finished"]["validation"]
    for name in ("loss", "perplexity", "tokens", "bleu", "exact_match"):
        assert report[name] == pytest.approx(in_training[name], rel=1e-4), name


def test_split_that_the_recipe_does_not_name(trained_run):
    with pytest.raises(UserError, match="split 'holdout' was not prepared"):
        stage.evaluate(trained_run, "holdout")
