"""A run that begins with published weights: where its numbers and tokens come from, and that the weights arrive."""

import json

import numpy as np
import pytest

from kerasllm.data.published import Vocabulary
from kerasllm.errors import UserError
from kerasllm.pretrained import complete_recipe
from kerasllm.recipe import load_recipe

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
