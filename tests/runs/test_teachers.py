"""Teachers of a distillation: a published model with its classifier, runs, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.published import Vocabulary as Tokens
from kerasllm.data.tokenizers import WordpieceTokenizer
from kerasllm.data.vocabulary import Vocabulary
from kerasllm.errors import UserError
from kerasllm.layers.heads import ClassificationHead
from kerasllm.models.bert import Bert
from kerasllm.models.published.bert import write_huggingface
from kerasllm.recipe import load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.teachers import build_teachers, load_teacher
from kerasllm.stages.train import begin_run
from kerasllm.tasks.classify_text import ClassifyText

TOKENS = Tokens(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"))
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12, "max_sequence_length": 12}
PUBLISHED_RECIPE = """\
task: classify_text
seed: 5
data: {source: table, train: a.csv, columns: {text: text, label: label}}
batching: {max_sequence_length: 12}
model: {num_layers: 1, num_heads: 2, hidden_dim: 4, intermediate_dim: 4, max_sequence_length: 16}
training:
  train_steps: 1
  objective: {name: distillation, teacher: published}
"""
BATCH = {
    "token_ids": np.int32([[2, 5, 7, 3]]),
    "segment_ids": np.int32([[0, 0, 0, 0]]),
    "labels": np.int32([[1]]),
    "num_cut_tokens": np.int32([[0]]),
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A model in the layout of Hugging Face, in the folder `published` of the working directory."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(3)
    model, head = Bert(8, **SIZES), ClassificationHead(2, 8)
    generator = np.random.default_rng(3)
    for variable in [*model.weights, *head.weights]:
        variable.assign(generator.normal(size=variable.shape))
    architecture, heads = "BertForSequenceClassification", {"classifier": head}
    write_huggingface(model, TOKENS, tmp_path / "published", architecture, heads, ("no", "yes"))
    return model, head


def teach(*overrides, labels=("no", "yes"), tokens=TOKENS):
    """The teachers of a recipe in the working directory, and their fingerprints."""
    with open("r.yaml", "w") as file:
        file.write(PUBLISHED_RECIPE)
    recipe = load_recipe("r.yaml", overrides)
    task = ClassifyText(recipe, Vocabulary(WordpieceTokenizer(tokens), labels))
    task.build_model()
    return build_teachers(recipe, task, None, BATCH)


def test_a_published_model_answers_with_its_classifier(published):
    model, head = published
    teachers, fingerprints = teach("training.objective.hidden_weight=1.0")
    inputs = {name: tf.constant(BATCH[name]) for name in ("token_ids", "segment_ids")}
    logits, hidden = teachers["published"].ask({name: tf.constant(array) for name, array in BATCH.items()})
    np.testing.assert_allclose(logits[:, 0], head(model.pooled(model(inputs))), atol=1e-5)
    assert len(hidden) == 3
    assert teachers["published"].projection.kernel.shape == (4, 8)
    np.testing.assert_allclose(hidden[-1][0], model(inputs), atol=1e-5)
    other = fingerprints["published"]
    head.dense.bias.assign([1.0, 0.0])
    shutil.rmtree("published")
    heads = {"classifier": head}
    write_huggingface(model, TOKENS, "published", "BertForSequenceClassification", heads, ("no", "yes"))
    assert teach()[1]["published"] != other
    assert teach()[1] == teach()[1]


def test_teachers_of_ticks_and_inside_other_objectives_are_found(published):
    shutil.copytree("published", "other")
    inside = "{name: fgm, epsilon: 1.0, around: {name: distillation, teacher: other}}"
    teachers, _ = teach(f"ticks=[{{at_step: 0, objective: {inside}}}]")
    assert list(teachers) == ["published", "other"]
    with pytest.raises(UserError, match=r"--set ticks\[0\]\.objective\.around\.teacher: nobody: holds no run"):
        teach(f"ticks=[{{at_step: 0, objective: {inside.replace('other', 'nobody')}}}]")


@pytest.mark.parametrize(
    ("override", "arguments", "message"),
    [
        (
            "seed=1",
            {"labels": ("yes", "no")},
            "config.json: id2label has no, yes, and the labels of the data are yes, no",
        ),
        ("seed=1", {"labels": ("no", "so", "yes")}, "they must be the same in the same order"),
        ("seed=1", {"tokens": Tokens((*TOKENS.tokens, "more"))}, "its tokenizer is not that of this recipe"),
        ("seed=1", {"tokens": Tokens(TOKENS.tokens, lowercase=False)}, "its tokenizer is not that of this recipe"),
        ("batching.max_sequence_length=13", {}, "reads 12 tokens, and a text of this recipe may have 13; lower batch"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(published, override, arguments, message):
    with pytest.raises(UserError, match=rf"^r.yaml:\d+: training.objective.teacher: published: .*{message}"):
        teach(override, **arguments)


RECIPE = """\
task: classify_text
seed: 1
data: {source: built_in, name: date_languages, train: 300, validation: 20, test: 20}
tokenizer: {kind: characters}
batching: {global_batch_size: 16, max_sequence_length: 32}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 32}
training:
  train_steps: 6
  checkpoint_every_steps: 2
  evaluate_every_steps: 6
  objective: {name: distillation, teacher: teacher, hidden_weight: 0.5}
ticks:
  - {at_step: 5, objective: {name: supervised}}
"""
SUPERVISED = ["--set", "training.objective={name: supervised}", "--set", "ticks=[]", "--set", "model.hidden_dim=16"]


@pytest.mark.slow
def test_a_run_teaches_another_one(run_command, tmp_path):
    """A run that goes on ends in the same bits; a teacher with other labels is refused."""
    (tmp_path / "r.yaml").write_text(RECIPE)

    def train(run, *arguments):
        return run_command("train", "r.yaml", "--run-dir", run, *arguments, cwd=tmp_path)

    assert train("teacher", *SUPERVISED).returncode == 0
    done = train("straight")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    for name in ("step_00000006", "chosen"):
        shutil.rmtree(checkpoints / name)
    assert np.load(checkpoints / "step_00000004" / "state.npz")["distillation_projection/kernel"].shape == (8, 16)
    manifest = json.loads((tmp_path / "stopped" / "manifest.json").read_text())
    del manifest["finished"]
    (tmp_path / "stopped" / "manifest.json").write_text(json.dumps(manifest))
    done = train("stopped")
    assert "going on after 4" in done.stderr, done.stderr
    ends = [tmp_path / run / "checkpoints" / "step_00000006" for run in ("straight", "stopped")]
    for part in ("weights", "state"):
        first, second = (dict(np.load(end / f"{part}.npz")) for end in ends)
        assert first.keys() == second.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name], err_msg=name)
    recipe, teacher = load_recipe(tmp_path / "r.yaml"), str(tmp_path / "teacher")
    assert load_teacher(teacher, recipe, None, tmp_path / "straight").model.hidden_dim == 16
    (tmp_path / "straight" / "labels.json").write_text("[]")
    with pytest.raises(UserError, match=r"teacher: its labels\.json: not as this recipe's data gives it; a teacher"):
        load_teacher(teacher, recipe, None, tmp_path / "straight")


def test_a_teacher_that_has_changed_is_refused(tmp_path):
    recipe = SimpleNamespace(to_yaml=lambda: "task: x\n")
    prepared, run = SimpleNamespace(directory=tmp_path / "0123abc"), RunDirectory(tmp_path / "run")
    for _ in range(2):
        begin_run(run, recipe, prepared, {"large": "a"})
    with pytest.raises(UserError, match=r"run: the weights of its teacher large have changed since it was begun"):
        begin_run(run, recipe, prepared, {"large": "b"})
