"""A model is published only when a fresh process gives its answers; otherwise nothing is left behind."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.trained_run import answer_texts, load_run
from kerasllm.serving import saved_model
from kerasllm.stages import export as stage
from kerasllm.stages.predict import predict
from kerasllm.task import ODD_TEXTS, Task
from kerasllm.training.checkpoints import Checkpoint, Checkpoints

SAMPLE_INPUTS = stage.sample_inputs
TEXTS = ["5. März 2021", "on the 3rd", "a", "bb a", "", "日本", "bb bb bb bb", "a a", "b"]


class EchoTask(Task):
    """Repeats a text character by character in a loop; the score is a sum over embeddings of a Keras layer."""

    inputs = {"text": "source"}
    reference = None

    def __init__(self, tokenizer):
        import keras

        self.tokenizer, self.model = tokenizer, None
        self.embedding = keras.layers.Embedding(tokenizer.vocabulary_size, 3)
        self.dropout = keras.layers.Dropout(0.5)
        self.embedding.build()

    def answer(self, texts):
        import tensorflow as tf

        token_ids = self.tokenizer.tokenize(texts)[:, :20].to_tensor()
        length = tf.shape(token_ids)[1]

        def step(position, score):
            vectors = self.dropout(self.embedding(token_ids[:, position]), training=False)
            real = tf.cast(token_ids[:, position] != 0, tf.float32)
            return position + 1, score + real * tf.reduce_sum(vectors, axis=1)

        _, score = tf.while_loop(lambda position, _: position < length, step, (0, tf.zeros(tf.shape(texts))))
        return {"text": self.tokenizer.detokenize(token_ids), "score": score}


class RestlessTask(EchoTask):
    """Its score is what a file holds at the moment."""

    def __init__(self, tokenizer, file):
        super().__init__(tokenizer)
        self.file = str(file)

    def answer(self, texts):
        import tensorflow as tf

        return {
            **super().answer(texts),
            "score": tf.fill(tf.shape(texts), tf.strings.to_number(tf.io.read_file(self.file))),
        }


def make_tokenizer(kind, directory):
    from kerasllm.data.settings import CleaningSettings, TokenizerSettings
    from kerasllm.data.tokenizer_training import train_tokenizer

    settings = TokenizerSettings(kind=kind, max_vocabulary_size=40)
    return train_tokenizer(settings, CleaningSettings(), TEXTS * 5, directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("characters", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", autouse=True)
def samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "sample_inputs", lambda run: [(text,) for text in TEXTS])
        yield


def make_run(directory, task):
    import keras

    run = RunDirectory(directory / "run")
    (run.checkpoints_path / "chosen").mkdir(parents=True)
    (run.checkpoints_path / "chosen" / "weights.npz").write_bytes(b"weights")
    recipe = SimpleNamespace(dump=lambda: {"task": "echo"})
    model = task.model or keras.Sequential([task.embedding])
    return SimpleNamespace(directory=run, recipe=recipe, task=task, model=model, progress={"chosen": "step 7"})


@pytest.fixture(scope="module", params=["subwords", "words", "characters"])
def published(request, tmp_path_factory):
    """(the task, its saved_models/echo, the report of the export), with each kind of tokenizer."""
    directory = tmp_path_factory.mktemp("export")
    task = EchoTask(make_tokenizer(request.param, directory))
    run = make_run(directory, task)
    to = directory / "saved_models" / "echo"
    (to / "4").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "load_run", lambda run_dir, overrides, data_dir: run)
        report = stage.export(directory / "run", to)
    return task, to, report


def test_publishes_the_next_version(published):
    _, to, report = published
    assert report["path"] == str(to / "5")
    assert report["version"] == 5
    assert report["num_verified"] == len(TEXTS)
    assert report["bytes"] == sum(path.stat().st_size for path in (to / "5").rglob("*") if path.is_file())
    assert sorted(path.name for path in to.iterdir()) == ["4", "5", "batching_parameters.txt"]
    assert {path.name for path in (to / "5" / "assets.extra").iterdir()} == {
        "kerasllm.json",
        "tf_serving_warmup_requests",
    }


def test_fresh_process_answers_at_another_batch_size(published):
    import tensorflow as tf

    task, to, _ = published
    command = [sys.executable, "-I", saved_model.__file__, str(to), "--json", *TEXTS]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    for text, answer in zip(TEXTS, answers, strict=True):
        alone = task.answer(tf.constant([text]))
        assert answer["text"] == alone["text"].numpy()[0].decode()
        assert answer["score"] == pytest.approx(float(alone["score"][0]), abs=1e-5)
    assert answers[0]["text"] == TEXTS[0]


def test_saved_model_holds_each_variable_once_and_names_no_device(published):
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    _, to, _ = published
    names = [name for name, _ in tf.train.list_variables(str(to / "5" / "variables" / "variables"))]
    assert len([name for name in names if "VARIABLE_VALUE" in name]) == 1
    model = saved_model_pb2.SavedModel.FromString((to / "5" / "saved_model.pb").read_bytes())
    (graph,) = (meta_graph.graph_def for meta_graph in model.meta_graphs)
    functions = [f for f in graph.library.function if not f.signature.name.startswith("__inference__traced_")]
    assert {node.device for function in functions for node in function.node_def} == {""}


def test_manifest_says_where_the_model_comes_from(published):
    _, to, _ = published
    manifest = json.loads((to / "5" / "assets.extra" / "kerasllm.json").read_text(encoding="utf-8"))
    assert manifest["recipe"] == {"task": "echo"}
    assert manifest["endpoints"] == {
        "serving_default": {"inputs": ["text"], "outputs": ["text", "score"]},
        "tokenize": {"inputs": ["text"], "outputs": ["token_ids", "lengths"]},
    }
    assert manifest["weights"] == {"chosen": "step 7"}
    # printf weights | sha256sum
    assert manifest["sha256"] == {
        "chosen/weights.npz": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    }


def test_different_answers_are_not_published(tokenizer, tmp_path, monkeypatch):
    run, ask = make_run(tmp_path, RestlessTask(tokenizer, tmp_path / "score.txt")), stage.answer_in_fresh_process

    def ask_later(directory, requests):
        (tmp_path / "score.txt").write_text("2")
        try:
            return ask(directory, requests)
        finally:
            (tmp_path / "score.txt").write_text("1")

    (tmp_path / "score.txt").write_text("1")
    monkeypatch.setattr(stage, "answer_in_fresh_process", ask_later)
    with pytest.raises(UserError, match=r"not published: for '5\. März 2021' \(endpoint serving_default, batch of 1\)"):
        stage.publish(run, tmp_path / "saved_models" / "random" / "1")
    assert list((tmp_path / "saved_models" / "random").iterdir()) == []


def test_failed_first_export_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    run = make_run(tmp_path, EchoTask(tokenizer))
    (tmp_path / "saved_models").mkdir()
    monkeypatch.setattr(stage, "load_run", lambda run_dir, overrides, data_dir: run)
    monkeypatch.setattr(stage.saved_model, "__file__", str(tmp_path / "no_such_script.py"))
    with pytest.raises(UserError, match=r"does not run in a fresh process: .*no_such_script"):
        stage.export(tmp_path / "run", tmp_path / "saved_models" / "echo")
    assert list((tmp_path / "saved_models").iterdir()) == []


def test_full_disk_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = make_run(tmp_path, EchoTask(tokenizer))
    monkeypatch.setattr(stage, "write_manifest", fail)
    monkeypatch.setattr(stage, "verify", lambda *_: None)
    target = tmp_path / "saved_models" / "echo" / "1"
    with pytest.raises(UserError, match=f"{target}: cannot be written: No space left on device") as error:
        stage.publish(run, target)
    assert "\n" not in str(error.value)
    assert list(target.parent.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_small_disk_leaves_nothing(tokenizer, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mount is not allowed here")
    try:
        with pytest.raises(UserError, match=r"echo/1: cannot be written: No space left on device"):
            stage.publish(make_run(tmp_path, EchoTask(tokenizer)), disk / "echo" / "1")
        assert list((disk / "echo").iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_next_version(tmp_path):
    assert stage.next_version(tmp_path / "new") == tmp_path / "new" / "1"
    for name in ("2", "10", ".11.tmp"):
        (tmp_path / "model" / name).mkdir(parents=True)
    assert stage.next_version(tmp_path / "model") == tmp_path / "model" / "11"
    assert stage.next_version(tmp_path / "model" / "7") == tmp_path / "model" / "7"
    with pytest.raises(UserError, match=r"model/10: exists already, and a published version never changes"):
        stage.next_version(tmp_path / "model" / "10")


def test_exported_run_answers_as_predict_does(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "sample_inputs", SAMPLE_INPUTS)
    report = stage.export(trained_run, tmp_path / "dates")
    assert report["num_verified"] == stage.NUM_SENTENCES + len(ODD_TEXTS)
    texts = ["Friday, March 5, 2021", "", "1. Mai 1999", "2021年3月5日 星期五", "x" * 200]
    command = [sys.executable, "-I", saved_model.__file__, str(tmp_path / "dates"), "--json", *texts]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    served = [json.loads(line) for line in done.stdout.decode().splitlines()]
    monkeypatch.setattr("kerasllm.runs.trained_run.BATCH_SIZE", 1)
    predicted = predict(trained_run, texts)
    assert [row["text"] for row in served] == [row["text"] for row in predicted]
    assert [row["score"] for row in served] == pytest.approx([row["score"] for row in predicted], abs=1e-4)


def test_a_gate_that_is_not_fully_open_answers_and_is_exported_with_its_value(trained_run, tmp_path, monkeypatch):
    """The export itself compares a fresh process with this one; here that its answers are those of the gate."""
    monkeypatch.setenv("KERASLLM_CACHE", str(trained_run.parent / "cache"))
    copy, scores = tmp_path / "run", {}
    shutil.copytree(trained_run, copy)
    ticks = "ticks: [{at_step: 0, open_normalization: {layers: ^decoder_norm$, over_steps: 60}}]"
    recipe = (copy / "recipe.yaml").read_text("utf-8")
    assert "ticks: []" in recipe
    (copy / "recipe.yaml").write_text(recipe.replace("ticks: []", ticks), "utf-8")
    weights = Checkpoint(copy / "checkpoints" / "chosen").load("weights")
    checkpoints = Checkpoints(RunDirectory(copy))
    for gate in (1.0, 0.4):
        checkpoints.choose({**weights, "decoder_norm/gate": np.float32(gate)}, {})
        loaded = load_run(copy)
        assert loaded.model.decoder_norm.normalization_gate.numpy() == np.float32(gate)
        scores[gate] = [answer["score"] for answer in answer_texts(loaded.task, [["May 5, 1961"]], "predict")]
    plain = load_run(trained_run)
    assert scores[1.0] == [answer["score"] for answer in answer_texts(plain.task, [["May 5, 1961"]], "predict")]
    assert abs(scores[0.4][0] - scores[1.0][0]) > 0.01
    exported = stage.export(copy, tmp_path / "saved_models" / "dates")
    request = {"signature_name": saved_model.ENDPOINT, "inputs": ["May 5, 1961"]}
    (reply,) = stage.answer_in_fresh_process(Path(exported["path"]), [request])
    assert reply["outputs"]["score"] == pytest.approx(scores[0.4], abs=1e-4)


def test_samples_are_validation_sentences(trained_run):
    samples = [text for (text,) in SAMPLE_INPUTS(load_run(trained_run))]
    assert samples[stage.NUM_SENTENCES :] == list(ODD_TEXTS)
    assert len(set(samples)) == len(samples)
    assert all(any(character.isdigit() for character in text) for text in samples[: stage.NUM_SENTENCES])


CLASSIFIER = """
task: classify_text
data: {source: table, train: a.csv, columns: {text: a, other_text: b, label: c}}
batching: {max_sequence_length: 8}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 8}
training: {train_steps: 1}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one_label", "several_labels", "number"])
def test_a_classifier_of_pairs_answers_as_before_it_was_exported(tokenizer, tmp_path, monkeypatch, kind):
    """`publish` compares all outputs at two batch sizes; here the command is asked, with a TAB between the texts."""
    import numpy as np
    import tensorflow as tf

    from kerasllm.data.vocabulary import Vocabulary
    from kerasllm.recipe import load_recipe
    from kerasllm.tasks.classify_text import ClassifyText

    (tmp_path / "r.yaml").write_text(CLASSIFIER)
    labels = () if kind == "number" else ("bad", "good", "日本")
    task = ClassifyText(
        load_recipe(tmp_path / "r.yaml", [f"classification.kind={kind}"]), Vocabulary(tokenizer, labels)
    )
    generator = np.random.default_rng(0)
    for variable in task.build_model().weights:
        variable.assign(generator.normal(size=variable.shape))
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    monkeypatch.setattr(stage, "sample_inputs", lambda run: pairs)
    stage.publish(make_run(tmp_path, task), tmp_path / "saved_models" / "pairs" / "1")
    command = [sys.executable, "-I", saved_model.__file__, str(tmp_path / "saved_models" / "pairs"), "--json"]
    done = subprocess.run([*command, *map("\t".join, pairs)], capture_output=True, timeout=120, check=True)
    served = [json.loads(line) for line in done.stdout.decode().splitlines()]
    expected = task.answer(*(tf.constant(column) for column in zip(*pairs, strict=True)))
    assert list(served[0]) == ["source", *expected]
    for name, values in expected.items():
        column = [row[name] for row in served]
        if values.dtype == tf.string:
            assert column == saved_model.to_json(values.numpy())
        else:
            np.testing.assert_allclose(column, values, atol=1e-4)


def test_answers_may_hold_line_ends_of_unicode(tmp_path, monkeypatch):
    reply = {"outputs": {"text": ["a\u2028b\x85c"]}}
    line = json.dumps(reply, ensure_ascii=False) + "\n"
    done = SimpleNamespace(returncode=0, stdout=2 * line.encode(), stderr=b"")
    monkeypatch.setattr(stage.subprocess, "run", lambda *arguments, **options: done)
    assert stage.answer_in_fresh_process(tmp_path, [{}, {}]) == [reply, reply]
