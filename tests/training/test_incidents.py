"""The first layer whose output is not finite is named, with what went into it, and looking changes nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.environment import compute_precision
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.incidents import inspect_step
from kerasllm.training.objectives import cross_entropy
from kerasllm.training.optimizer_settings import AdamWSettings
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.step_guard import StepGuard
from kerasllm.training.trainer import Trainer

IDS = np.array([[3, 4, 5, 6], [5, 6, 7, 0]], np.int32)


def objective(model, ids, training):
    logits = model({"encoder_token_ids": ids, "decoder_token_ids": ids[:, :-1]}, training=training)
    return cross_entropy(logits, ids[:, 1:]), tf.cast(ids[:, 1:] != 0, tf.float32)


def trainer_of(precision="float32"):
    keras.utils.set_random_seed(1)
    with compute_precision(precision):
        model = EncoderDecoder(10, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=8, dropout=0.5)
    trainer = Trainer(model, objective, guard=StepGuard())
    trainer.compile(optimizer=build_optimizer(AdamWSettings(), 0.02, model.trainable_variables))
    return trainer


def inspect(trainer):
    return inspect_step(trainer, tf.distribute.get_strategy(), [(IDS,)])


def break_weight(model):
    kernel = model.decoder_blocks[1].feed_forward.expand.kernel
    kernel.assign(tf.fill(kernel.shape, float("nan")))


def break_activation(model):
    model.encoder_blocks[1].feed_forward.activation = lambda x: x / 0.0


def break_logits(model):
    """What comes out of the last normalization is of size 60,000, and times the table more than float16 holds."""
    model.decoder_norm.offset.assign(tf.fill([8], 60_000.0))
    model.embedding.table.assign(tf.ones_like(model.embedding.table.value))


@pytest.mark.parametrize(
    ("broken", "precision", "layer", "greatest_input"),
    [
        (break_weight, "float32", "decoder_layer_1/feed_forward/expand", (0.1, 10.0)),
        (break_activation, "float32", "encoder_layer_1/feed_forward", (0.1, 10.0)),
        (break_logits, "float16", "embedding.logits", (59_000.0, 61_000.0)),
    ],
    ids=["weight", "activation", "float16"],
)
def test_the_first_bad_layer(broken, precision, layer, greatest_input):
    trainer = trainer_of(precision)
    broken(trainer.model)
    found = inspect(trainer)
    assert found["first_layer"]["layer"].endswith(layer)
    low, high = greatest_input
    assert low < found["first_layer"]["largest_finite_input"] < high
    assert found["first_layer"]["not_finite"] > 0
    assert [path.endswith(f"{layer}/kernel") for path in found["weights"]] == ([True] if "expand" in layer else [])


def test_an_inspection_sees_the_step_as_it_was_and_changes_nothing():
    """The gradient norms are those of the step, with the same dropout masks; then the step can be taken again."""
    trainer, other = trainer_of(), trainer_of()
    logs, again = trainer.train_step([tf.constant(IDS)]), other.train_step([tf.constant(IDS)])
    assert float(logs["gradient_norm"]) == float(again["gradient_norm"])
    trainer.guard.judge = lambda loss, norm: (tf.constant(False), {})
    logs = trainer.train_step([tf.constant(IDS)])
    before = [variable.numpy() for variable in [*trainer.model.variables, *trainer.optimizer.variables]]
    found = inspect(trainer)
    assert found["first_layer"] is None
    assert found["weights"] == []
    norms = found["gradient_norms"]
    assert set(norms) == {variable.path for variable in trainer.model.trainable_variables}
    assert np.linalg.norm(list(norms.values())) == pytest.approx(float(logs["gradient_norm"]), rel=1e-5)
    after = [variable.numpy() for variable in [*trainer.model.variables, *trainer.optimizer.variables]]
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "call" not in trainer.model.embedding.__dict__
