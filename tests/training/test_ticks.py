"""Ticks: what holds at each step follows from the timeline; wrong timelines are refused before the first step."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.models.conv_net import ConvNet
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.models.settings import ConvolutionLayerSettings
from kerasllm.models.vision_transformer import VisionTransformer
from kerasllm.training.objectives import PhasedObjective
from kerasllm.training.schedule_settings import ConstantSettings, CosineSettings
from kerasllm.training.schedules import build_schedule
from kerasllm.training.settings import TrainingSettings
from kerasllm.training.tick_settings import PlateauSettings, TickSettings
from kerasllm.training.ticks import Ticking, Timeline, TimelineSchedule, average_decay, resolve_ticks, values_of
from kerasllm.training.trainer import Trainer

TOTAL = 100
CONSTANT = ConstantSettings()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    return EncoderDecoder(10, **sizes, dropout=0.1)


def resolved(*ticks, epoch_starts=(0, 40, 80, TOTAL)):
    places = [f"recipe.yaml:{line}: ticks[{line}]" for line in range(len(ticks))]
    return resolve_ticks(ticks, places, epoch_starts, TOTAL)


def training(**others):
    return TrainingSettings(train_steps=TOTAL, **others)


def timeline_schedule(ticks, first=CONSTANT):
    return TimelineSchedule(build_schedule(first, 1.0, TOTAL), ticks, TOTAL)


def rates(ticks, steps, first=CONSTANT):
    schedule = timeline_schedule(ticks, first)
    return [float(schedule(tf.constant(step, tf.int64))) for step in steps]


def test_steps_epochs_and_shares_become_steps():
    ticks = [{"at_share": 0.9}, {"at_epoch": 1}, {"at_step": 7}]
    found = resolved(*(TickSettings(learning_rate_factor=0.5, **when) for when in ticks))
    assert [(tick.step, tick.place) for tick in found] == [
        (7, "recipe.yaml:2: ticks[2]"),
        (40, "recipe.yaml:1: ticks[1]"),
        (90, "recipe.yaml:0: ticks[0]"),
    ]


@pytest.mark.parametrize("when", [{"at_step": 100}, {"at_epoch": 3}, {"at_epoch": 9}])
def test_a_tick_after_the_end_is_refused(when):
    with pytest.raises(
        UserError, match=r"recipe.yaml:0: ticks\[0\]: comes after the end of the training, .* 100 steps"
    ):
        resolved(TickSettings(learning_rate_factor=0.5, **when))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"at_step": 40, "dropout": 0.1},
            {"at_epoch": 1, "dropout": 0.2},
            r"^recipe.yaml:1: ticks\[1\]\.dropout: is set at step 40 by ticks\[0\] too; leave one of them out",
        ),
        (
            {"at_share": 0.4, "augmentation": True},
            {"at_epoch": 1, "augmentation": False},
            r"^recipe.yaml:1: ticks\[1\]\.augmentation: is set at step 40 by ticks\[0\] too",
        ),
        (
            {"at_step": 2, "schedule": {"name": "constant"}, "label_smoothing": 0.1},
            {"at_step": 2, "label_smoothing": 0.1},
            r"ticks\[1\]\.label_smoothing: is set at step 2 by",
        ),
    ],
)
def test_one_thing_cannot_be_set_twice_at_one_moment(first, second, message):
    ticks = [TickSettings.model_validate_json(json.dumps(tick)) for tick in (first, second)]
    with pytest.raises(UserError, match=message):
        resolved(*ticks)


def test_what_adds_up_can_stand_in_several_ticks_of_one_moment():
    ticks = [TickSettings(at_step=5, freeze=each, learning_rate_factor=0.5) for each in ("encoder", "decoder")]
    assert rates(resolved(*ticks), [5]) == [0.25]


def test_the_values_of_an_action():
    ticks = resolved(
        TickSettings(at_step=9, augmentation=True),
        TickSettings(at_step=0, augmentation=False),
        TickSettings(at_step=5, dropout=0.1),
    )
    assert values_of("augmentation", True, ticks) == [(0, False), (9, True)]
    assert values_of("label_smoothing", 0.1, ticks) == [(0, 0.1)]


def test_factors_multiply_and_a_new_schedule_starts_from_the_rate_of_its_moment():
    ticks = resolved(
        TickSettings(at_step=10, learning_rate_factor=0.5),
        TickSettings(at_step=20, learning_rate_factor=0.5),
        TickSettings(at_step=50, schedule=CosineSettings()),
    )
    found = rates(ticks, [0, 9, 10, 19, 20, 49, 50, 75, 99])
    expected = [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.25 * (1 + np.cos(np.pi * 49 / 50)) / 2]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_new_schedule_must_fit_into_the_steps_that_are_left():
    tick = TickSettings(at_step=90, schedule=CosineSettings(warmup_steps=20))
    message = r"recipe.yaml:0: ticks\[0\]\.schedule\.warmup_steps: 20 is not below the 10 steps"
    with pytest.raises(UserError, match=message):
        timeline_schedule(resolved(tick))


def test_a_factor_goes_on_with_the_schedule_under_way():
    tick, warmed_up = TickSettings(at_step=50, learning_rate_factor=0.1), CosineSettings(warmup_steps=5)
    plain = rates([], range(TOTAL), warmed_up)
    found = rates(resolved(tick), range(TOTAL), warmed_up)
    np.testing.assert_allclose(found, np.array(plain) * np.where(np.arange(TOTAL) < 50, 1.0, 0.1), rtol=1e-6)


def test_freezing_and_unfreezing(model):
    ticks = resolved(
        TickSettings(at_step=0, freeze="encoder_.*|embedding"),
        TickSettings(at_epoch=1, unfreeze="encoder_layer_1/.*"),
        TickSettings(at_epoch=2, unfreeze=".*"),
    )
    timeline = Timeline(model, ticks)
    everything = {variable.path for variable in model.trainable_variables}
    assert timeline.steps == [0, 40, 80]
    assert {path.split("/")[0] for path in everything - timeline.frozen(39)} == {
        "decoder_layer_0",
        "decoder_layer_1",
        "decoder_norm",
    }
    assert timeline.frozen(39) - timeline.frozen(40) == {p for p in everything if p.startswith("encoder_layer_1/")}
    assert not timeline.frozen(80)
    assert timeline.set_phase(40)
    assert not timeline.set_phase(41), "nothing changed: no new trace"
    assert len(model.trainable_variables) == len(everything) - len(timeline.frozen(40))
    assert timeline.trainable_parameters(40) == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    timeline.set_phase(80)
    assert timeline.rows()[-1] == ("80", "unfreeze .*", f"{model.count_params():,}")


def test_dropout_changes_where_there_is_some_and_comes_back(model):
    timeline = Timeline(model, resolved(TickSettings(at_step=5, dropout=0.0), TickSettings(at_step=9, dropout=0.3)))
    dropouts = [layer for layer in model._flatten_layers() if getattr(layer, "rate", 0)]
    inner = model.encoder_blocks[0].feed_forward.dropout
    for step, rate in ((4, 0.1), (5, 0.0), (9, 0.3), (0, 0.1)):
        timeline.set_phase(step)
        assert {layer.rate for layer in dropouts} == {rate}
        assert inner.rate == 0.0


@pytest.mark.parametrize(
    ("ticks", "message"),
    [
        (
            [{"at_step": 0, "freeze": "encoder/.*"}],
            r"ticks\[0\]\.freeze: 'encoder/\.\*' matches no variable; .*encoder_",
        ),
        ([{"at_step": 7, "freeze": ".*"}], r"ticks\[0\]\.freeze: nothing is left to be trained; freeze less"),
        (
            [{"at_step": 2, "freeze": "coder_"}, {"at_step": 9, "freeze": "embedding"}],
            r"ticks\[1\]\.freeze: nothing is left to be trained",
        ),
        (
            [{"at_step": 3, "freeze": "embedding"}, {"at_step": 3, "unfreeze": ".*"}],
            r"ticks\[1\]: embedding/table is both frozen and unfrozen at step 3",
        ),
    ],
)
def test_patterns_that_cannot_be_meant(model, ticks, message):
    with pytest.raises(UserError, match=message):
        Timeline(model, resolved(*(TickSettings(**tick) for tick in ticks)))


def test_pictures_grow_while_a_network_is_trained_and_are_whole_when_it_answers():
    network = ConvNet(8, 8, 1, 2, layers=(ConvolutionLayerSettings(name="convolution", filters=4),))
    timeline = Timeline(
        network, resolved(TickSettings(at_step=0, picture_scale=0.5), TickSettings(at_step=9, picture_scale=1))
    )
    pictures = tf.random.normal([2, 8, 8, 1])
    for step, side in ((0, 4), (8, 4), (9, 8)):
        timeline.set_phase(step)
        assert network.features(pictures, training=True).shape == (2, side, side, 4)
        assert network.features(pictures).shape == (2, 8, 8, 4)


def test_another_scale_of_pictures_needs_a_new_trace():
    network = ConvNet(8, 8, 1, 2, layers=(ConvolutionLayerSettings(name="convolution", filters=4),))
    timeline = Timeline(network, resolved(TickSettings(at_step=3, picture_scale=0.5)))
    assert [timeline.set_phase(step) for step in (0, 3, 4)] == [False, True, False]


def test_pictures_cannot_grow_where_only_one_size_fits(model):
    transformer = VisionTransformer(8, 8, 1, 2, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4)
    for one_size in (model, transformer):
        with pytest.raises(UserError, match=r"ticks\[0\]\.picture_scale: the model sees nothing of another size"):
            Timeline(one_size, resolved(TickSettings(at_step=1, picture_scale=0.5)))


def test_dropout_cannot_change_where_there_is_none():
    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    with pytest.raises(UserError, match=r"ticks\[0\]\.dropout: the model has no dropout; begin with a small rate"):
        Timeline(layer, resolved(TickSettings(at_step=1, dropout=0.1)))


def test_the_objective_changes_inside_one_fit():
    """The graph is traced again; the losses are those of the objective of the step, as in a run that goes on there."""

    def scaled(factor):
        return lambda model, batch, training: (factor * model(batch), tf.ones([2, 1]))

    def losses_of(start, steps):
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        layer.build((None, 1))
        ticks = resolved(TickSettings(at_step=2, label_smoothing=0.1), TickSettings(at_step=4, label_smoothing=0.2))
        objective = PhasedObjective([(0, scaled(1.0)), (2, scaled(10.0)), (4, scaled(100.0))])
        schedule, timeline = timeline_schedule(ticks), Timeline(layer, ticks, objective)
        trainer = Trainer(layer, objective)
        trainer.compile(optimizer=keras.optimizers.SGD(0.0))
        trainer.optimizer.iterations.assign(start)
        ticking = Ticking(timeline, schedule, lambda: None, lambda step, text: None)
        ticking.restore([], start)
        losses = []
        record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
        dataset = tf.data.Dataset.from_tensors((tf.constant([[1.0], [3.0]]),)).repeat()
        trainer.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[ticking, record])
        return losses

    assert losses_of(0, 5) == [2.0, 2.0, 20.0, 20.0, 200.0]
    assert losses_of(3, 2) == [20.0, 200.0]


def test_the_table_names_every_action(model):
    tick = {
        "at_step": 9,
        "objective": {"name": "r_drop", "alpha": 1.0},
        "label_smoothing": 0.0,
        "augmentation": False,
        "open_normalization": {"layers": "encoder", "over_steps": 1500},
    }
    row = Timeline(model, resolved(TickSettings.model_validate_json(json.dumps(tick)))).rows()[1]
    assert row[:2] == (
        "9",
        "objective r_drop, label_smoothing 0.0, augmentation off, open_normalization encoder over 1,500 steps",
    )


def test_a_frozen_variable_stays_and_goes_on_when_unfrozen(model):
    """Inside one `fit`: the graph is traced again at the tick, and the optimizer keeps its state."""
    keras.utils.set_random_seed(2)
    table = keras.layers.Embedding(4, 2)
    table.build()
    layer = keras.Sequential([table, keras.layers.Dense(1)])
    layer.build((None, 3))
    ticks = resolved(TickSettings(at_step=2, freeze=".*kernel"), TickSettings(at_step=4, unfreeze=".*"))
    schedule, timeline = timeline_schedule(ticks), Timeline(layer, ticks)
    trainer = Trainer(layer, lambda model, batch, training: (model(batch)[..., 0], tf.ones([2, 3])))
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    optimizer.build(layer.trainable_variables)
    trainer.compile(optimizer=optimizer)
    ticking = Ticking(timeline, schedule, lambda: None, lambda step, text: said.append(step))
    said, kernels = [], []
    ticking.restore([], 0)
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kernels.append(layer.layers[1].kernel.numpy().copy())
    )
    dataset = tf.data.Dataset.from_tensors((tf.constant([[0, 1, 2], [3, 1, 0]]),)).repeat()
    trainer.fit(dataset, steps_per_epoch=5, verbose=0, callbacks=[ticking, record])
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(kernels)]
    assert changed == [True, False, False, True]
    assert said == [2, 4]


def test_plateaus_lower_the_rate_and_are_restored():
    tick = TickSettings(when_plateau=PlateauSettings(patience_evaluations=2), learning_rate_factor=0.5)
    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    ticks, losses, said = resolved(tick), [3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 1.5], []

    def ticking_with(metrics):
        schedule = timeline_schedule(ticks)
        return Ticking(Timeline(layer, ticks), schedule, lambda: metrics, lambda step, text: said.append(step))

    state = []
    for step, loss in enumerate(losses, start=1):
        ticking = ticking_with({"loss": loss})  # a new one each time, as if the run had been stopped in between
        ticking.restore(state, step - 1)
        ticking.on_step(step, {})
        state = ticking.state
    assert said == [4, 7]
    assert float(ticking.schedule(tf.constant(9))) == 0.25


def test_the_average_begins_with_the_weights_of_its_moment():
    ticks = resolved(TickSettings(at_step=3, average_decay=0.9))
    decay = average_decay(training(), ticks)
    assert [float(decay(tf.constant(step))) for step in (0, 4, 5, 50)] == pytest.approx([0, 0, 0.9, 0.9])
    assert average_decay(training(), []) is None


def test_the_average_of_the_weights_by_hand():
    """SGD on a constant gradient of 1: w goes 1, 0.9, 0.8, 0.7; the average copies the first and follows."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 1))
    decay = average_decay(training(average_decay=0.5), [])
    trainer = Trainer(layer, lambda model, x, training: (model(x), tf.ones_like(x)), average_decay=decay)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    for _ in range(3):
        trainer.train_step([tf.constant([[1.0]])])
    average = 0.5 * 0.9 + 0.5 * 0.8
    average = 0.5 * average + 0.5 * 0.7
    with trainer.answering_weights() as weights:
        assert float(weights[0].numpy().squeeze()) == pytest.approx(average)
    assert float(layer.kernel.numpy().squeeze()) == pytest.approx(0.7)


def test_weights_that_look_ahead_go_on_from_their_average():
    """As above, every second step: 0.9 and 0.8 have the average 0.85, from where it goes to 0.75 and 0.65."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    layer.build((None, 1))
    decay = average_decay(training(average_decay=0.5), [])
    averaging = {"average_decay": decay, "lookahead_every": 2}
    trainer = Trainer(layer, lambda model, x, training: (model(x), tf.ones_like(x)), **averaging)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    found = []
    for _ in range(4):
        trainer.train_step([tf.constant([[1.0]])])
        found.append(float(layer.kernel.numpy().squeeze()))
    third = 0.5 * 0.85 + 0.5 * 0.75
    assert found == pytest.approx([0.9, 0.85, 0.75, 0.5 * third + 0.5 * 0.65])


@pytest.mark.parametrize(
    ("tick", "message"),
    [
        ({"freeze": "a"}, "give one of at_step, at_epoch, at_share, when_plateau, found none"),
        ({"at_step": 1, "at_epoch": 1, "freeze": "a"}, "found at_step and at_epoch"),
        ({"at_step": 1}, "changes nothing"),
        ({"when_plateau": {}, "freeze": "a"}, "when_plateau can change learning_rate_factor only"),
        ({"at_step": 1, "freeze": "("}, r"'\(' is not a regular expression: missing \), unterminated subpattern"),
        ({"at_step": 1, "open_normalization": {"layers": "(", "over_steps": 1}}, "'.' is not a regular expression"),
        ({"at_step": 1, "open_normalization": {"layers": "a", "over_steps": 0}}, "greater than or equal to 1"),
        ({"at_step": 1, "augmentation": "off"}, "should be a valid boolean"),
        ({"when_plateau": {}, "augmentation": False}, "when_plateau can change learning_rate_factor only"),
        ({"at_share": 0.5, "accumulate_batches": 2}, "accumulate_batches needs at_step or at_epoch"),
    ],
)
def test_ticks_that_say_too_little_or_too_much(tick, message):
    with pytest.raises(ValueError, match=message):
        TickSettings.model_validate_json(json.dumps(tick))
