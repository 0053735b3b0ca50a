"""Runs on top of published weights: what they store, how they go on, and that the weights below are found again."""

import json
import shutil

import numpy as np
import pytest

from kerasllm.data.published import Vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.runs.pretrained import complete_recipe

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s")
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12, "max_sequence_length": 16}
RECIPE = """\
task: classify_text
data: {source: table, train: a.csv, validation: a.csv, columns: {text: text, label: label}}
batching: {global_batch_size: 2, max_sequence_length: 16}
cleaning: {drop_leaks: false}
model: {pretrained: tiny, dropout: 0.1}
tuning: {name: lora, rank: 2, dropout: 0.1}
training:
  train_steps: 4
  peak_learning_rate: 0.1
  best_metric: loss
  checkpoint_every_steps: 2
  evaluate_every_steps: 2
  average_decay: 0.5
  optimizer: {weight_decay: 0.1}
"""


def write_published(directory, seed=1):
    import keras

    from kerasllm.models.bert import Bert
    from kerasllm.models.published.bert import write_huggingface

    keras.utils.set_random_seed(seed)
    write_huggingface(Bert(len(TOKENS), **SIZES), Vocabulary(TOKENS), directory)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory with a published model `tiny`, a table and a recipe."""
    directory = tmp_path_factory.mktemp("data")
    write_published(directory / "tiny")
    (directory / "a.csv").write_text("text,label\ngood films,yes\nbad film,no\ngood,yes\nbad,no\n")
    (directory / "r.yaml").write_text(RECIPE)
    return directory


def train(recipe, run, data_dir):
    """As in a process of its own: Keras numbers what it makes, and the optimizer's name is in a checkpoint."""
    import keras

    from kerasllm.stages.train import train as stage

    keras.backend.clear_session()
    return stage(recipe, run, data_dir)


@pytest.fixture(scope="module")
def trained(data):
    """A run with LoRA, at its end, and what training returned."""
    report = train(load_recipe(data / "r.yaml"), data / "run", data)
    return data / "run", report


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run."""
    return shutil.copytree(trained[0], tmp_path / "run")


def arrays(run, name, part="weights"):
    return dict(np.load(run / "checkpoints" / name / f"{part}.npz"))


ADDITIONS = {f"lora/layer_0/self_attention/query_key_value/{part}_{factor}"
             for part in ("query", "value") for factor in ("down", "up")}  # fmt: skip
HEAD = {"head/dense/kernel", "head/dense/bias"}


@pytest.mark.slow
def test_a_checkpoint_holds_what_was_trained_and_no_more(trained, data):
    run, report = trained
    for name in ("step_00000004", "chosen"):
        assert arrays(run, name).keys() == ADDITIONS | HEAD
    assert not [name for name in arrays(run, "step_00000004", "state") if "feed_forward" in name or "table" in name]
    sizes = [array.size for array in arrays(run, "chosen").values()]
    assert report["trained_parameters"] == sum(sizes) == 2 * 2 * 8 * 2 + 18
    embeddings, block, pooler = (9 + 16 + 2 + 2) * 8, 4 * 8 * 8 + 4 * 8 + 2 * 8 * 12 + 12 + 8 + 4 * 8, 8 * 8 + 8
    assert report["parameters"] == embeddings + block + pooler + report["trained_parameters"]
    assert report["stored_megabytes"] == round(4 * sum(sizes) / 1e6, 3)
    base = json.loads((run / "manifest.json").read_text())["base"]
    assert (base["source"], base["data_dir"]) == ("tiny", str(data))
    assert load_recipe(run / "recipe.yaml").tuning.train_pooler is False


@pytest.mark.slow
def test_a_run_goes_on_to_the_same_bits(trained, run, data):
    straight, expected = trained
    for name in ("step_00000004", "chosen"):
        shutil.rmtree(run / "checkpoints" / name)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["finished"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    report = train(load_recipe(data / "r.yaml"), run, data)
    assert {**report, "seconds": 0} == {**expected, "seconds": 0}
    for part in ("weights", "state"):
        ours, theirs = (arrays(each, "step_00000004", part) for each in (run, straight))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.slow
def test_a_loaded_run_is_a_plain_model_with_what_was_learnt(trained, run, data, tmp_path, monkeypatch):
    """It is the published one, and its kernel of queries and values has the addition."""
    from kerasllm.models.published.bert import read_published
    from kerasllm.runs.trained_run import load_run
    from kerasllm.stages.export import export_huggingface

    monkeypatch.chdir(tmp_path)
    model, learnt = load_run(run).model, arrays(run, "chosen")
    plain = read_published("tiny", data).build()
    assert [v.path for v in model.weights] == [*(v.path for v in plain.weights), *(v.path for v in model.head.weights)]
    for ours, theirs in zip(model.weights, plain.weights, strict=False):
        if ours.path != "layer_0/self_attention/query_key_value/kernel":
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    at = "lora/layer_0/self_attention/query_key_value"
    for place, part in ((0, "query"), (2, "value")):
        rows = slice(8 * place, 8 * place + 8)
        added = 16 / 2 * learnt[f"{at}/{part}_up"] @ learnt[f"{at}/{part}_down"]
        kernels = [each.blocks[0].self_attention.query_key_value.kernel.numpy()[rows] for each in (model, plain)]
        np.testing.assert_allclose(kernels[0], kernels[1] + added, atol=1e-5)
        assert np.abs(added).max() > 1e-3
    export_huggingface(run, tmp_path / "out")
    exported = read_published("out", tmp_path).build()
    for ours, theirs in zip(model.weights, exported.weights, strict=False):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.mark.slow
def test_a_base_that_is_not_there_or_another_one_is_refused(run, data, tmp_path):
    from kerasllm.runs.trained_run import load_run

    other = tmp_path / "other"
    other.mkdir()
    assert load_run(run, data_dir=other).model is not None, "the one of the training is found all the same"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["base"]["data_dir"] = str(other)
    (run / "manifest.json").write_text(json.dumps(manifest))
    message = (
        r"run: holds only what it has learnt on top of tiny, which cannot be loaded \(.*other/tiny: does not exist"
    )
    with pytest.raises(UserError, match=message):
        load_run(run)
    assert load_run(run, data_dir=data).model is not None
    write_published(other / "tiny", seed=2)
    with pytest.raises(
        UserError, match=r"run: was trained on top of other weights than tiny holds now \(\w{12}, and n"
    ):
        load_run(run)
    shutil.copy(data / "a.csv", other / "a.csv")
    manifest.pop("finished")
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match="was trained on top of other weights than tiny holds now"):
        train(load_recipe(data / "r.yaml"), run, other)
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_without_published_weights_all_are_stored(data, tmp_path):
    from kerasllm.runs.trained_run import load_run
    from kerasllm.stages.export import export_huggingface

    changes = ["model={num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8}", "training.train_steps=1"]
    changes += ["tokenizer={kind: wordpiece, vocabulary: tiny}", "tuning={name: prefix, num_tokens: 2}"]
    changes += ["training.evaluate_every_steps=null"]
    train(load_recipe(data / "r.yaml", changes), tmp_path / "run", data)
    run = load_run(tmp_path / "run")
    assert "base" not in json.loads((tmp_path / "run/manifest.json").read_text())
    assert arrays(tmp_path / "run", "chosen").keys() == {variable.path for variable in run.model.weights}
    with pytest.raises(UserError, match=r"run: has learnt a prefix, and Hugging Face's Bert has no place for one"):
        export_huggingface(tmp_path / "run", tmp_path / "out")


def without_pooler(directory):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def test_the_pooler_is_trained_where_it_begins_at_random(data, tmp_path):
    def completed(*overrides):
        return complete_recipe(load_recipe(data / "r.yaml", overrides), tmp_path).tuning

    shutil.copytree(data / "tiny", tmp_path / "tiny")
    assert completed().train_pooler is False
    assert completed("tuning.train_pooler=true").train_pooler is True
    without_pooler(tmp_path / "tiny")
    assert completed().train_pooler is True
    assert completed("tuning={name: full}").name == "full"
    with pytest.raises(UserError, match=r"--set tuning\.train_pooler: is false, but tiny has no pooler; leave it out"):
        completed("tuning.train_pooler=false")


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ("{name: lora, rank: 0}", r"--set tuning\.rank: must be at least 1, found 0"),
        ("{name: lroa}", r'--set tuning\.name: unknown value "lroa"; did you mean \'lora\'\?'),
        ("{name: only}", r"--set tuning\.variables: is missing"),
        ("{name: only, variables: '('}", r"is not a regular expression"),
    ],
)
def test_a_wrong_section(data, tuning, message):
    with pytest.raises(UserError, match=message):
        load_recipe(data / "r.yaml", [f"tuning={tuning}"])


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ("{name: top_layers, num_layers: 2}", r"--set tuning\.num_layers: 2 is more than the 1 blocks of the model"),
        (
            "{name: lora, projections: qery}",
            r"--set tuning\.projections: 'qery' matches no frozen projection; the near",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_written(data, tmp_path, tuning, message):
    with pytest.raises(UserError, match=message):
        train(load_recipe(data / "r.yaml", [f"tuning={tuning}"]), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_weights_of_other_shapes_leave_no_run_behind(data, tmp_path):
    shutil.copytree(data / "tiny", data / "odd")
    config = json.loads((data / "odd" / "config.json").read_text())
    (data / "odd" / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    with pytest.raises(UserError, match=r"odd: \d+ weights do not fit the model\n  encoder.layer.0.intermediate"):
        train(load_recipe(data / "r.yaml", ["model.pretrained=odd"]), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()
