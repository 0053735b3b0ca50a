"""Gates of normalization: their value is a function of the step, and what is answered and saved is that of the step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.layers.normalization import LayerNormalization, gated_normalization
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.normalization_gates import Gate, Ramp, build_gates, gated_layers
from kerasllm.training.tick_settings import TickSettings
from kerasllm.training.ticks import resolve_ticks
from kerasllm.training.trainer import Trainer

TOTAL = 100
ENCODER = "encoder_layer_.*/normalization"


def tick(step, action, layers, over_steps):
    return TickSettings.model_validate({"at_step": step, action: {"layers": layers, "over_steps": over_steps}})


def resolved(*ticks):
    places = [f"recipe.yaml:{line}: ticks[{line}]" for line in range(len(ticks))]
    return resolve_ticks(ticks, places, (0, TOTAL), TOTAL)


def model_of(ticks):
    keras.utils.set_random_seed(1)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "dropout": 0.0}
    with gated_normalization(gated_layers(ticks)):
        return EncoderDecoder(10, **sizes)


def values(gate, steps):
    return [float(gate.at(tf.constant(step, tf.int64))) for step in steps]


def gate_of(*ramps):
    return Gate(keras.Variable(0.5), ramps)


def test_it_opens_linearly_and_ends_at_one_exactly():
    found = values(gate_of(Ramp(10, 3, 1.0)), [0, 9, 10, 11, 12, 13, 14, 99])
    assert found[:3] == [0, 0, 0]
    assert found[3:5] == pytest.approx([1 / 3, 2 / 3])
    assert found[5:] == [1, 1, 1]


def test_it_closes_from_one_and_may_open_again():
    gate = gate_of(Ramp(2, 4, 0.0), Ramp(20, 10, 1.0))
    assert values(gate, [0, 2, 3, 6, 19, 20, 25, 30]) == [1, 1, 0.75, 0, 0, 0, 0.5, 1]


def test_a_ramp_that_is_cut_off_goes_on_from_its_value():
    gate = gate_of(Ramp(0, 10, 1.0), Ramp(3, 7, 0.0))
    assert values(gate, [2, 3, 10, 11]) == pytest.approx([0.2, 0.3, 0, 0])
    assert values(gate, [10, 11]) == [0, 0]


def test_gates_are_only_where_a_tick_asks_for_one_and_begin_at_their_value():
    ticks = [tick(5, "open_normalization", ENCODER, 10), tick(0, "close_normalization", "decoder_norm", 9)]
    assert gated_layers(ticks) == [ENCODER, "decoder_norm"]
    model = model_of(ticks)
    gates = build_gates(model, resolved(*ticks), TOTAL)
    found = {gate.variable.path: float(gate.variable.numpy()) for gate in gates}
    layers = [f"encoder_layer_{i}/{part}_residual" for i in (0, 1) for part in ("feed_forward", "self_attention")]
    assert found == {"decoder_norm/gate": 1.0, **{f"{layer}/normalization/gate": 0.0 for layer in layers}}
    assert {id(gate.variable) for gate in gates} <= {id(weight) for weight in model.weights}
    plain = model_of([])
    assert not any(weight.name == "gate" for weight in plain.weights)
    assert [w.path for w in model.trainable_weights] == [w.path for w in plain.trainable_weights]


@pytest.mark.parametrize(
    ("ticks", "message"),
    [
        (
            [tick(90, "open_normalization", ENCODER, 11)],
            r"^recipe.yaml:0: ticks\[0\]\.open_normalization\.over_steps: 11 is more than the 10 steps that are left",
        ),
        (
            [tick(5, "open_normalization", "encodr_norm", 11)],
            r"^recipe.yaml:0: ticks\[0\]\.open_normalization\.layers: 'encodr_norm' matches no layer of normalization; "
            "the nearest are encoder_norm",
        ),
        (
            [tick(5, "open_normalization", "coder_norm", 9), tick(5, "close_normalization", "decoder_norm", 9)],
            r"^recipe.yaml:1: ticks\[1\]\.close_normalization: decoder_norm is blended by two ticks at step 5",
        ),
    ],
)
def test_blends_that_cannot_be_meant(ticks, message):
    with pytest.raises(UserError, match=message):
        build_gates(model_of(ticks), resolved(*ticks), TOTAL)


def test_a_model_without_normalization():
    layer = keras.layers.Dense(1)
    with pytest.raises(UserError, match="'a' matches no layer of normalization; the model has none"):
        build_gates(layer, resolved(tick(0, "open_normalization", "a", 1)), TOTAL)


class Scaled(keras.Model):
    """A normalization of rows of two numbers, times a weight."""

    def __init__(self):
        super().__init__()
        self.normalization = LayerNormalization(name="normalization")
        self.normalization.build((None, 2))
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.built = True

    def call(self, x, training=False):
        return self.a * self.normalization(x)


def trained(steps, average_decay=None, from_weights=None, from_step=0):
    """Each step's loss, the gate after it, and the trainer."""
    ticks = [tick(1, "open_normalization", "normalization", 4)]
    with gated_normalization(gated_layers(ticks)):
        model = Scaled()
    gates = build_gates(model, resolved(*ticks), TOTAL)
    trainer = Trainer(model, lambda model, x, training: (model(x), tf.ones_like(x)), None, 0, 0, average_decay, gates)
    trainer.compile(optimizer=keras.optimizers.SGD(0.01))
    if from_weights:
        model.set_weights(from_weights)
        trainer.optimizer.iterations.assign(from_step)
    step = tf.function(trainer.train_step, autograph=False)
    losses, found = [], []
    for _ in range(steps):
        losses.append(float(step([tf.constant([[1.0, 5.0]])])["loss"]))
        found.append(float(gates[0].variable.numpy()))
    return losses, found, trainer


def test_the_gate_follows_the_steps_of_the_trainer():
    losses, found, trainer = trained(7)
    assert found == [0, 0.25, 0.5, 0.75, 1, 1, 1], "after step n the value for the next one"
    assert losses[0] == 3.0, "the mean of the input: nothing is normalized yet"
    halfway = trained(3)[2].model
    rest, _, resumed = trained(4, from_weights=halfway.get_weights(), from_step=3)
    assert rest == losses[3:]
    for ours, theirs in zip(resumed.model.get_weights(), trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_average_of_the_weights_answers_with_the_gate_of_the_step():
    _, found, trainer = trained(3, average_decay=lambda step: tf.constant(0.9))
    gate = trainer.gates[0].variable
    assert len(trainer.averages) == len(trainer.model.weights) - 1
    trained_a = float(trainer.model.a.numpy())
    with trainer.answering_weights() as weights:
        assert any(weight is gate for weight in weights)
        assert float(gate.numpy()) == found[-1] == 0.5
        assert float(trainer.model.a.numpy()) > trained_a
    assert float(trainer.model.a.numpy()) == trained_a
