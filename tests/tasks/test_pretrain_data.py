"""Documents on their way through `prepare`, batches and an evaluation of the task `pretrain`."""

import numpy as np
import pytest
import tensorflow as tf

from kerasllm.data.batching import BatchStream
from kerasllm.data.preparation import prepare_data
from kerasllm.data.settings import BatchingSettings
from kerasllm.data.vocabulary import load_vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.runs.evaluation import Evaluator
from kerasllm.tasks.pretrain import MASK, Pretrain
from kerasllm.training.objectives import Supervised

RECIPE = """
task: pretrain
data: {source: documents, train: a.txt, validation: b.txt}
tokenizer: {kind: wordpiece, max_vocabulary_size: 120, lowercase: true}
batching: {max_sequence_length: 16}
model: {num_layers: 1, num_heads: 2, hidden_dim: 8, intermediate_dim: 8, max_sequence_length: 20}
training: {train_steps: 1}
"""
PLACES = ("park", "house", "school", "garden")
SENTENCES = [f"{name} goes to the {place}." for name in ("Anna", "Ben", "Carla", "Dora") for place in PLACES]
DOCUMENTS = ["\n".join(SENTENCES[at : at + 4]) for at in range(0, 16, 4)] * 2


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASLLM_CACHE", str(tmp_path / "cache"))

    def prepare(*overrides):
        (tmp_path / "r.yaml").write_text(RECIPE, encoding="utf-8")
        (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS[:4]), encoding="utf-8")
        longer = "\n\n".join(
            f"{document}\n{document} And now all of them go home again from the garden." for document in DOCUMENTS
        )
        (tmp_path / "b.txt").write_text(longer, encoding="utf-8")
        recipe = load_recipe(tmp_path / "r.yaml", overrides)
        return recipe, prepare_data(recipe, tmp_path)

    return prepare


def test_a_split_is_evaluated_in_one_pass_and_shows_sentences(prepare):
    recipe, prepared = prepare()
    task = Pretrain(recipe, load_vocabulary(prepared.directory))
    model = task.build_model()
    examples = prepared.examples("validation")
    assert prepared.splits["validation"] < len(examples)
    figures = []
    for size in (3, 64):
        settings = BatchingSettings(global_batch_size=size, max_sequence_length=16)
        metrics, rows = Evaluator(task, model, examples, BatchStream(examples, settings, seed=size))("evaluate")
        figures.append(metrics)
    assert set(figures[0]) == {*Pretrain.metric_names, "loss", "tokens"}
    for name, value in figures[0].items():
        assert value == pytest.approx(figures[1][name], rel=1e-5), name
    assert next(sorted(row) for row in rows) == ["prediction", "probabilities", "reference", "text", "tokens"]
    assert all(MASK in row["text"] and MASK not in row["prediction"] for row in rows)


@pytest.mark.parametrize("split", [(2, 1), (1, 3), (2, 2)])
def test_the_loss_of_a_step_does_not_depend_on_how_its_batch_is_split(prepare, split):
    recipe, prepared = prepare("model.dropout=0", "model.attention_dropout=0")
    task = Pretrain(recipe, load_vocabulary(prepared.directory))
    model, objective, sums = task.build_model(), Supervised(task), []
    for num_replicas, micro_batches in ((1, 1), split):
        settings = BatchingSettings(global_batch_size=5, max_sequence_length=16)
        stream = BatchStream(prepared.examples("validation"), settings, 4, num_replicas, micro_batches)
        stream.corruption = task.corruption()
        elements = stream.elements_of_step(1, 1, 0)
        parts = [objective(model, part, training=True) for element in elements for part in element]
        assert len(parts) == num_replicas * micro_batches
        sums.append([sum(float(tf.reduce_sum(losses * weights)) for losses, weights in parts)])
        sums[-1].append(sum(float(tf.reduce_sum(weights)) for _, weights in parts))
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


def test_records_of_examples_are_counted_over_chunks(prepare, monkeypatch):
    monkeypatch.setattr("kerasllm.data.preparation._CHUNK_RECORDS", 3)
    _, prepared = prepare("pretraining.next_sentence=false")
    examples = prepared.examples("validation")
    assert examples.features["record"].values.max() >= len(DOCUMENTS) - 3
    assert examples.record(len(examples) - 1)["text"].startswith(SENTENCES[12])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer={kind: words}"], r"tokenizer\.kind: words has no token for \[MASK\]; use wordpiece or subwords"),
        (["data={source: built_in, name: dates, train: 9}"], "dates has source, target, but the task needs text"),
    ],
)
def test_bad_input(prepare, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        prepare(*overrides)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
