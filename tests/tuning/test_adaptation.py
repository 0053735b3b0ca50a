"""What is trained is what is meant, nothing else changes or costs, and what is merged is what was learnt."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.layers.heads import ClassificationHead
from kerasllm.models.bert import Bert
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.optimizer_settings import AdamWSettings
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.step_guard import StepGuard
from kerasllm.training.tick_settings import TickSettings
from kerasllm.training.ticks import Timeline, resolve_ticks
from kerasllm.training.trainer import Trainer
from kerasllm.tuning.adaptation import adapt, begin, merge
from kerasllm.tuning.settings import (
    FullSettings,
    LoraSettings,
    OnlySettings,
    PrefixSettings,
    PromptSettings,
    TopLayersSettings,
)

D, F, LAYERS = 8, 12, 2
SIZES = {"num_layers": LAYERS, "num_heads": 2, "hidden_dim": D, "intermediate_dim": F, "max_sequence_length": 16}
SIZES["initializer_stddev"] = 0.5
IDS = np.array([[5, 6, 7, 8, 9], [9, 4, 0, 0, 0]])
BATCH = {"token_ids": tf.constant(IDS), "segment_ids": tf.constant([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])}
WAYS = [
    FullSettings(),
    TopLayersSettings(num_layers=1),
    OnlySettings(variables="bias$"),
    LoraSettings(rank=2, train_pooler=False),
    LoraSettings(rank=2, dropout=0.1),
    PromptSettings(num_tokens=2, train_pooler=False),
    PrefixSettings(num_tokens=2, train_pooler=False),
]
each_way = pytest.mark.parametrize("settings", WAYS, ids=lambda settings: settings.name)


def build(settings):
    keras.utils.set_random_seed(1)
    model = Bert(30, **SIZES)
    model.head = ClassificationHead(3, D, name="head")
    adapt(model, settings)
    begin(model, 1)
    return model


def logits(model, training=False):
    return model.head(model.pooled(model(BATCH, training=training)), training=training)


def objective(model, batch, training):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 2], logits(model, training))
    return losses[:, None], tf.ones([2, 1])


def trainer_of(model, guard=None):
    trainer = Trainer(model, objective, 1.0, average_decay=lambda step: tf.constant(0.9), guard=guard)
    trainer.compile(optimizer=build_optimizer(AdamWSettings(weight_decay=0.1), 0.01, model.trainable_variables))
    return trainer


def bits(variables):
    return {variable.path: variable.numpy().tobytes() for variable in variables}


PATHS = {
    "lora": {f"lora/layer_{i}/self_attention/query_key_value/{part}_{factor}"
             for i in range(LAYERS) for part in ("query", "value") for factor in ("up", "down")},
    "prompt": {"prompt/vectors"},
    "prefix": {f"prefix/layer_{i}/self_attention/{part}" for i in range(LAYERS) for part in ("keys", "values")},
}  # fmt: skip


@pytest.mark.parametrize("settings", [LoraSettings(rank=2), PromptSettings(), PrefixSettings()], ids=lambda s: s.name)
@pytest.mark.parametrize("train_pooler", [True, False])
def test_adapters_and_heads_are_trained_and_nothing_else(settings, train_pooler):
    settings = settings.model_copy(update={"train_pooler": train_pooler, "num_tokens": 4})
    expected = PATHS[settings.name] | {"head/dense/kernel", "head/dense/bias"}
    if train_pooler:
        expected |= {"pooler/kernel", "pooler/bias"}
    assert {variable.path for variable in build(settings).trainable_variables} == expected


@each_way
def test_frozen_variables_keep_every_bit_and_cost_no_state(settings):
    """With weight decay, clipping, an average and a guard; everything that is trained moves."""
    model = build(settings)
    trainer, plain = trainer_of(model, StepGuard()), bits(build(FullSettings()).weights)
    before = bits(model.weights)
    for _ in range(2):
        trainer.train_step([BATCH])
    after, trained = bits(model.weights), {variable.path for variable in model.trainable_variables}
    assert {path for path in after if after[path] != before[path]} == trained
    if settings.name == "full":
        assert len(trained) == len(model.weights)
        return
    assert {path for path in plain if after[path] == plain[path]} == plain.keys() - trained
    assert [average.name for average in trainer.averages] == [f"average_{v.name}" for v in model.trainable_variables]
    assert len(trainer.optimizer.variables) == 2 + 2 * len(trained)
    with trainer.answering_weights():
        averaged = bits(model.weights)
    assert {path for path in after if after[path] != averaged[path]} == trained
    assert bits(model.weights) == after
    sizes = [np.prod(v.shape) for v in model.trainable_variables]
    assert trainer.parameter_counts == (sum(sizes), sum(np.prod(v.shape) for v in model.weights))


@pytest.mark.parametrize("projections", ["query|value", "self_attention", ".", r"layer_1/.*expand"])
def test_lora_begins_as_the_model_to_the_bit_and_with_its_head(projections):
    plain, model = build(FullSettings()), build(LoraSettings(rank=2, projections=projections))
    assert len(model.lora) == {"query|value": 2, "self_attention": 4, ".": 8}.get(projections, 1)
    np.testing.assert_array_equal(logits(model), logits(plain))


def gradient_operations(settings):
    """What a graph runs that computes the gradients of a step."""
    trainer = trainer_of(build(settings))
    graph = tf.function(lambda: trainer.gradient_of([BATCH]), autograph=False).get_concrete_function().graph
    return needed_operations([tensor.op for tensor in graph.outputs], graph.control_outputs)


def needed_operations(outputs, side_effects):
    """The operations that a graph runs: those that its outputs and side effects depend on."""
    waiting, needed = [*outputs, *side_effects], {}
    while waiting:
        operation = waiting.pop()
        if operation.name not in needed:
            needed[operation.name] = operation
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return list(needed.values())


def products(operations):
    return [operation.outputs[0].shape for operation in operations if operation.type == "MatMul"]


@pytest.mark.parametrize(
    ("settings", "gradients"),
    [(FullSettings(), 2 * LAYERS), (TopLayersSettings(num_layers=1), 2), (LoraSettings(rank=2), 0)],
    ids=["full", "top_layers", "lora"],
)
def test_a_frozen_kernel_costs_no_gradient(settings, gradients):
    """A gradient of a kernel of the feed-forward networks is a product of shape [D, F] or [F, D]."""
    operations = gradient_operations(settings)
    shapes = [tuple(shape.as_list()) for shape in products(operations)]
    assert len([shape for shape in shapes if set(shape) == {D, F}]) == gradients
    scattered = [operation for operation in operations if operation.type == "UnsortedSegmentSum"]
    of_table = [operation for operation in scattered if operation.inputs[0].shape[-1] == D]  # determinism has others
    assert bool(of_table) == (settings.name == "full"), "the gradient of the token table"
    if settings.name == "top_layers":
        # Forward 4 products a block, segments, pooler and head; backward 2 for each kernel of what is trained. Below
        # the lowest trained block nothing is differentiated.
        assert len(shapes) == (4 * LAYERS + 3) + 2 * (4 + 2)


@pytest.mark.parametrize("projections", ["query|value", "."])
def test_merged_is_unmerged_and_nothing_is_left(projections):
    model = build(LoraSettings(rank=2, alpha=3.0, projections=projections))
    for addition in model.lora:
        for up in addition.up:
            up.assign(np.random.default_rng(0).normal(size=up.shape, scale=0.3))
    plain, unmerged = build(FullSettings()), logits(model)
    assert np.abs(unmerged - logits(plain)).max() > 1e-2
    merge(model)
    np.testing.assert_allclose(logits(model), unmerged, atol=1e-5)
    assert [variable.path for variable in model.weights] == [variable.path for variable in plain.weights]
    counts = []
    for each in (model, plain):
        graph = tf.function(lambda each=each: logits(each), autograph=False).get_concrete_function().graph
        counts.append(len([operation for operation in graph.get_operations() if operation.type == "MatMul"]))
    assert counts[0] == counts[1]


def test_lora_of_another_model():
    keras.utils.set_random_seed(1)
    model = EncoderDecoder(10, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8)
    ids = {"encoder_token_ids": tf.constant([[3, 4]]), "decoder_token_ids": tf.constant([[5, 6, 7]])}
    plain = model(ids).numpy()
    adapt(model, LoraSettings(rank=1, projections="cross_attention/(key|query)$"))
    np.testing.assert_array_equal(model(ids), plain)
    at = "lora/decoder_layer_0/cross_attention"
    expected = {f"{at}/query/down", f"{at}/query/up", f"{at}/key_value/key_down", f"{at}/key_value/key_up"}
    assert {variable.path for variable in model.trainable_variables if "lora" in variable.path} == expected


def test_a_pattern_without_a_projection():
    with pytest.raises(UserError, match=r"^projections: 'qery' matches no frozen projection; the nearest are .*query"):
        build(LoraSettings(projections="qery"))


@pytest.mark.parametrize(
    ("tick", "message"),
    [
        (
            {"unfreeze": "layer_1/"},
            r"^r\.yaml:9: ticks\[0\]\.unfreeze: layer_1/.* is frozen for the whole run by tuning",
        ),
        ({"freeze": "^embedding"}, r"^r\.yaml:9: ticks\[0\]\.freeze: embedding/table is frozen for the whole run by t"),
    ],
)
def test_ticks_leave_to_tuning_what_it_froze(tick, message):
    ticks = resolve_ticks([TickSettings(at_step=1, **tick)], ["r.yaml:9: ticks[0]"], (0, 9), 9)
    with pytest.raises(UserError, match=message):
        Timeline(build(LoraSettings()), ticks)


def test_ticks_freeze_and_free_what_is_trained():
    model = build(LoraSettings(train_pooler=False))
    ticks = [TickSettings(at_step=0, freeze="layer_"), TickSettings(at_step=1, unfreeze="^lora/layer_1/")]
    timeline = Timeline(model, resolve_ticks(ticks, ["a", "b"], (0, 9), 9))
    head, each = 3 * D + 3, 2 * 2 * 8 * D
    assert [timeline.trainable_parameters(step) for step in (0, 1)] == [head, head + each]
    timeline.set_phase(1)
    assert {v.path.split("/")[1] for v in model.trainable_variables if "lora" in v.path} == {"layer_1"}
