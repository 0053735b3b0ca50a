"""A run that begins with trained weights: where its numbers and tokens come from, and that the weights arrive."""

import json

import numpy as np
import pytest

from kerasllm.data.preparation import preparation_key, prepare_data
from kerasllm.data.published import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.pretrained import complete_recipe, load_pretrained

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s")
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12, "max_sequence_length": 16}
RECIPE = """\
task: classify_text
data: {source: table, train: a.csv, validation: a.csv, columns: {text: text, label: label}}
batching: {global_batch_size: 2, max_sequence_length: 16}
cleaning: {drop_leaks: false}
model: {pretrained: tiny, dropout: 0.0}
training: {train_steps: 1, peak_learning_rate: 1.0e-12, best_metric: accuracy}
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory with a published model `tiny`, a table and a recipe."""
    import keras

    from kerasllm.models.bert import Bert
    from kerasllm.models.published.bert import write_huggingface

    keras.utils.set_random_seed(1)
    directory = tmp_path_factory.mktemp("published")
    write_huggingface(Bert(len(TOKENS), **SIZES), Vocabulary(TOKENS), directory / "tiny")
    (directory / "plain.txt").write_text("\n".join(TOKENS) + "\n")
    (directory / "a.csv").write_text("text,label\ngood films,yes\nbad film,no\n")
    (directory / "r.yaml").write_text(RECIPE)
    return directory


def completed(directory, *overrides):
    return complete_recipe(load_recipe(directory / "r.yaml", overrides), directory)


def test_numbers_and_tokens_are_those_of_the_published_model(published):
    recipe = completed(published)
    assert {name: getattr(recipe.model, name) for name in SIZES} == SIZES
    assert (recipe.model.dropout, recipe.model.attention_dropout) == (0.0, 0.1)
    assert (recipe.tokenizer.kind, recipe.tokenizer.vocabulary) == ("wordpiece", "tiny")
    assert completed(published, "model.pretrained=null", "model.num_layers=3").model.num_layers == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_layers=2", r"--set model\.num_layers: is 2, and tiny has 1; leave it out"),
        ("model.pretrained=tinny", r"--set model\.pretrained: .*tinny: does not exist"),
        ("tokenizer.kind=words", r"tokenizer.*: the weights of tiny go with its own vocabulary; leave the section out"),
        ("tokenizer={kind: wordpiece, vocabulary: v.txt}", r"v\.txt is not the vocabulary of tiny; leave it out"),
    ],
)
def test_what_does_not_fit_the_published_model(published, override, message):
    (published / "v.txt").write_text("\n".join([*TOKENS, "more"]))
    with pytest.raises(UserError, match=message):
        completed(published, override)


@pytest.mark.slow
def test_the_weights_arrive_and_go_out_again(published, run_command, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(published / "cache"))
    recipe, run = str(published / "r.yaml"), str(published / "run")
    trained = run_command("train", recipe, "--run-dir", run, "--data-dir", str(published))
    assert trained.returncode == 0, trained.stderr
    exported = run_command("export", run, "--to", str(published / "out"), "--format", "huggingface", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["architecture"] == "BertForSequenceClassification"
    config = json.loads((published / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    from safetensors.numpy import load_file

    before, after = (load_file(published / name / "model.safetensors") for name in ("tiny", "out"))
    for name, tensor in before.items():
        np.testing.assert_allclose(after[f"bert.{name}"], tensor, atol=1e-6)
    assert after["classifier.weight"].shape == (2, 8)
    again = run_command("train", recipe, "--run-dir", run, "--data-dir", str(published))
    assert "is trained already" in again.stderr


SOURCE = """\
task: classify_by_cloze
data: {source: table, train: a.csv, validation: a.csv, columns: {text: text, label: label}}
cloze: {words: {"yes": good, "no": bad}}
cleaning: {drop_leaks: false}
batching: {max_sequence_length: 16}
tokenizer: {kind: wordpiece, vocabulary: plain.txt, lowercase: true, strip_accents: false}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 12, max_sequence_length: 16, epsilon: 0.01}
training: {train_steps: 1}
"""
CLOZE = """\
task: classify_by_cloze
data: {source: table, train: a.csv, validation: a.csv, columns: {text: text, label: label}}
cloze: {words: {"yes": film, "no": bad}}
cleaning: {drop_leaks: false}
model: {pretrained: source, dropout: 0.0}
training: {train_steps: 0}
"""
WORDS = """\
task: classify_text
data: {source: table, train: a.csv, validation: a.csv, columns: {text: text, label: label}}
cleaning: {drop_leaks: false, normalize_unicode: NFKC}
tokenizer: {kind: words, lowercase: true}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 12, max_sequence_length: 16}
training: {train_steps: 1}
"""


@pytest.fixture
def make_run(published, tmp_path, monkeypatch):
    """make_run(recipe, name) is a run at its end, with random weights, below the working directory."""
    from kerasllm.runs.trained_run import build_model, build_task
    from kerasllm.stages.train import begin_run
    from kerasllm.training.checkpoints import Checkpoints, read_variables

    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def make_run(content, name="source"):
        (tmp_path / f"{name}.yaml").write_text(content)
        recipe = load_recipe(tmp_path / f"{name}.yaml")
        prepared = prepare_data(recipe, published)
        task, run = build_task(recipe, prepared.directory), RunDirectory(tmp_path / name)
        model, generator = build_model(task, recipe), np.random.default_rng(7)
        for variable in model.weights:
            variable.assign(generator.normal(size=variable.shape, scale=0.5))
        begin_run(run, recipe, prepared)
        Checkpoints(run).choose(read_variables(model.weights), {"chosen": "random"})
        run.write_manifest(finished={"steps": 1})
        return task

    return make_run


def begun(published, content, *overrides):
    """The task of a recipe that begins with trained weights, and the heads that do not."""
    from kerasllm.runs.trained_run import build_model, build_task

    (published / "new.yaml").write_text(content)
    recipe = complete_recipe(load_recipe(published / "new.yaml", overrides), published)
    task = build_task(recipe, prepare_data(recipe, published).directory)
    build_model(task, recipe)
    return task, load_pretrained(recipe, task, published)


def test_a_run_gives_its_numbers_its_tokenizer_its_encoder_and_its_head(published, make_run):
    theirs = make_run(SOURCE)
    task, random = begun(published, CLOZE)
    assert random == []
    assert {name: getattr(task.recipe.model, name) for name in SIZES} == SIZES
    assert (task.recipe.model.epsilon, task.recipe.model.dropout) == (0.01, 0.0)
    assert (task.recipe.tokenizer.kind, task.recipe.tokenizer.run) == ("wordpiece", "source")
    assert task.tokenizer.vocabulary == theirs.tokenizer.vocabulary
    assert not task.tokenizer.vocabulary.normalization()["strip_accents"]
    inputs = {"token_ids": np.array([[2, 5, 7, 8, 3], [2, 6, 3, 0, 0]], "int32")}
    np.testing.assert_array_equal(task.model(inputs), theirs.model(inputs))
    assert len(task.model.weights) == len(theirs.model.weights)
    for ours, other in zip(task.model.weights, theirs.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), other.numpy(), err_msg=ours.path)


def test_another_head_begins_at_random_and_the_rest_is_taken(published, make_run, capsys):
    theirs = make_run(SOURCE)
    task, random = begun(published, RECIPE, "model.pretrained=source")
    assert random == ["classifier"]
    assert "source: has no classifier of this task" in capsys.readouterr().err
    np.testing.assert_array_equal(task.model.pooler.kernel.numpy(), theirs.model.pooler.kernel.numpy())
    assert np.abs(task.model.head.dense.kernel.numpy()).max() <= 0.04


@pytest.mark.parametrize(("labels", "is_taken"), [(("no", "yes"), True), (("yes", "no"), False), (("yes",), False)])
def test_a_classifier_is_taken_where_its_labels_are_the_same(published, labels, is_taken, tmp_path, monkeypatch):
    from kerasllm.layers.heads import ClassificationHead
    from kerasllm.models.bert import Bert
    from kerasllm.models.published.bert import write_huggingface

    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))
    head = ClassificationHead(len(labels), SIZES["hidden_dim"])
    name = "BertForSequenceClassification"
    write_huggingface(
        Bert(len(TOKENS), **SIZES), Vocabulary(TOKENS), tmp_path / "p", name, {"classifier": head}, labels
    )
    task, random = begun(published, RECIPE, f"model.pretrained={tmp_path / 'p'}")
    assert random == ([] if is_taken else ["classifier"])
    same = np.array_equal(task.model.head.dense.kernel.numpy(), head.dense.kernel.numpy())
    assert same == is_taken


def test_a_tokenizer_of_another_kind_comes_with_its_run(published, make_run):
    theirs = make_run(WORDS)
    task, random = begun(published, WORDS.partition("tokenizer")[0] + "model: {pretrained: source}\n"
                         "training: {train_steps: 1}\n", "cleaning.normalize_unicode=NFC")  # fmt: skip
    assert random == []  # the labels are the same
    assert (task.recipe.tokenizer.kind, task.recipe.tokenizer.run) == ("words", "source")
    texts = np.array(["GOOD ﬁlm odd", "bad"])
    assert task.tokenizer.tokenize(texts).to_list() == theirs.tokenizer.tokenize(texts).to_list()
    again = complete_recipe(task.recipe, published)
    assert again.dump() == task.recipe.dump()


def test_prepared_data_follows_the_content_of_the_tokenizer(published, make_run, tmp_path):
    make_run(SOURCE)
    recipe = begun(published, CLOZE)[0].recipe
    before = preparation_key(recipe, published)
    assert preparation_key(recipe, published) == before
    (tmp_path / "source").rename(tmp_path / "moved")
    make_run(SOURCE.replace("strip_accents: false", "strip_accents: true"))
    assert preparation_key(recipe, published) != before


def test_a_run_in_the_data_directory_comes_first(published, make_run, tmp_path):
    make_run(SOURCE)
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.csv").write_bytes((published / "a.csv").read_bytes())
    (data / "new.yaml").write_text(CLOZE)
    assert complete_recipe(load_recipe(data / "new.yaml"), data).model.num_layers == 1
    (data / "source").mkdir()
    with pytest.raises(UserError, match=r"model\.pretrained: .*data/source/config\.json: cannot be read"):
        complete_recipe(load_recipe(data / "new.yaml"), data)


def test_runs_that_cannot_be_begun_with(published, make_run, tmp_path):
    make_run(SOURCE)
    (published / "v.txt").write_text("\n".join([*TOKENS, "more"]))
    for tokenizer, message in (
        ("{kind: words}", r"tokenizer: the weights of source go with its own tokenizer; leave the section out"),
        (
            "{kind: wordpiece, vocabulary: v.txt, lowercase: true, strip_accents: false}",
            r"v\.txt is not the vocabulary",
        ),
        ("{kind: wordpiece, vocabulary: plain.txt, lowercase: true}", r"plain\.txt is not the vocabulary of source"),
    ):
        with pytest.raises(UserError, match=message):
            begun(published, CLOZE, f"tokenizer={tokenizer}")
    for same in ("run: source", "vocabulary: plain.txt, lowercase: true, strip_accents: false"):
        complete_recipe(load_recipe(published / "new.yaml", [f"tokenizer={{kind: wordpiece, {same}}}"]), published)
    checkpoint = tmp_path / "source" / "checkpoints" / "chosen" / "weights.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"source/checkpoints: every checkpoint is damaged"):
        begun(published, CLOZE)
    manifest = tmp_path / "source" / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(UserError, match=r"model\.pretrained: source: is not trained to its end; go on with it"):
        begun(published, CLOZE)
    dates = "task: translate\ndata: {source: built_in, name: dates, train: 9}\ntraining: {train_steps: 1}\n"
    (tmp_path / "source" / "recipe.yaml").write_text(dates)
    with pytest.raises(UserError, match=r"model\.pretrained: source: its task, translate, trains no Bert"):
        begun(published, CLOZE)


def test_the_numbers_of_a_run_load_no_tensorflow(published, make_run, run_python):
    make_run(SOURCE)
    code = (
        "import sys; from pathlib import Path; from kerasllm.runs.pretrained import complete_recipe;"
        "from kerasllm.recipe import load_recipe;"
        "print(complete_recipe(load_recipe(sys.argv[1]), sys.argv[2]).model.epsilon, 'tensorflow' in sys.modules)"
    )
    path = RunDirectory("source").path.absolute()
    (published / "new.yaml").write_text(CLOZE.replace("pretrained: source", f"pretrained: {path}"))
    done = run_python("-c", code, str(published / "new.yaml"), str(published))
    assert done.stdout.split() == ["0.01", "False"], done.stderr


def test_no_steps_give_a_run_that_answers_with_the_weights_as_they_are(published, make_run, tmp_path):
    from kerasllm.stages.predict import predict
    from kerasllm.stages.train import train

    theirs = make_run(SOURCE)
    (published / "new.yaml").write_text(CLOZE.replace('"yes": film', '"yes": good'))
    recipe = load_recipe(published / "new.yaml")
    report = train(recipe, tmp_path / "taken", published)
    assert report["steps"] == 0
    assert set(report["validation"]) >= {"accuracy", "loss"}
    (answer,) = predict(tmp_path / "taken", ["good films"])
    expected = theirs.answer(np.array(["good films"]))["probabilities"][0]
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    assert train(recipe, tmp_path / "taken", published) == report


def test_no_steps_need_weights_and_a_head_and_one_machine(published, make_run, tmp_path, monkeypatch):
    from kerasllm.stages.train import train

    make_run(SOURCE)
    with pytest.raises(UserError, match=r"train_steps: 0 takes pretrained weights as they are; name them in"):
        train(load_recipe(published / "r.yaml", ["training.train_steps=0", "model.pretrained=null"]), tmp_path / "no")
    recipe = load_recipe(published / "r.yaml", ["training.train_steps=0", "model.pretrained=source"])
    with pytest.raises(UserError, match=r"train_steps: is 0, but classifier must be trained; raise it"):
        train(recipe, tmp_path / "no", published)
    workers = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    with pytest.raises(UserError, match=r"training\.train_steps.*: 0 leaves no work for several machines; unset TF_"):
        train(recipe, tmp_path / "no", published)
    assert not (tmp_path / "no").exists()


def test_an_encoder_answers_without_any_data(published, make_run, tmp_path):
    from kerasllm.stages.evaluate import evaluate
    from kerasllm.stages.predict import predict
    from kerasllm.stages.train import train

    make_run(SOURCE)
    (tmp_path / "e.yaml").write_text("task: embed\ndata: {source: none}\nmodel: {pretrained: source}\n"
                                     "training: {train_steps: 0}\n")  # fmt: skip
    train(load_recipe(tmp_path / "e.yaml"), tmp_path / "vectors", published)
    (answer,) = predict(tmp_path / "vectors", ["good films"])
    np.testing.assert_allclose(np.linalg.norm(answer["vector"]), 1.0, rtol=1e-5)
    with pytest.raises(UserError, match=r"split 'test' was not prepared; there are none, because the recipe names no"):
        evaluate(tmp_path / "vectors", "test", published)
    with pytest.raises(UserError, match=r"data\.source: none gives no text to learn a tokenizer from"):
        prepare_data(load_recipe(tmp_path / "e.yaml", ["model.pretrained=null"]), published)
