"""Cross-entropy with smoothed labels, R-Drop by hand, and what every objective of a recipe must keep to."""

import keras
import numpy as np
import pydantic
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.adversarial import Fgm, FreeLb, PgdInput
from kerasllm.training.objective_settings import ObjectiveSettings, PgdInputSettings
from kerasllm.training.objectives import (
    RDrop,
    Supervised,
    build_objective,
    check_objective,
    cross_entropy,
    symmetric_divergence,
)
from kerasllm.training.trainer import Trainer


def test_label_smoothing_by_hand():
    """p = (1/2, 1/4, 1/4), label 0, epsilon 0.3: q = (0.8, 0.1, 0.1)."""
    logits = tf.math.log(tf.constant([[[0.5, 0.25, 0.25]]]))
    expected = 0.8 * np.log(2) + 0.2 * np.log(4)
    np.testing.assert_allclose(cross_entropy(logits, tf.constant([[0]]), 0.3), [[expected]], rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_those_of_a_full_table_of_labels(label_smoothing):
    rng = np.random.default_rng(0)
    logits = tf.Variable(rng.normal(size=(2, 3, 7)), dtype=tf.float32)
    labels = tf.constant(rng.integers(0, 7, (2, 3)))
    weights = tf.constant(rng.random((2, 3)), tf.float32)
    table = tf.one_hot(labels, 7) * (1 - label_smoothing) + label_smoothing / 7
    with tf.GradientTape(persistent=True) as tape:
        ours = cross_entropy(logits, labels, label_smoothing)
        theirs = tf.nn.softmax_cross_entropy_with_logits(table, logits)
        our_sum, their_sum = tf.reduce_sum(ours * weights), tf.reduce_sum(theirs * weights)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(our_sum, logits), tape.gradient(their_sum, logits), atol=1e-6)


class Given:
    """A task with given logits, one row of two positions: (1/2, 1/4, 1/4) twice, and in a second pass others."""

    FIRST = np.log([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]])
    SECOND = np.log([[[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]])

    def forward(self, model, batch, training):
        twice = batch["labels"].shape[0] == 2
        return tf.constant(np.concatenate([self.FIRST, self.SECOND]) if twice else self.FIRST, tf.float32)

    def loss(self, logits, batch, label_smoothing):
        losses = cross_entropy(logits, batch["labels"], label_smoothing)
        return losses, tf.cast(batch["labels"] != 2, losses.dtype)


GIVEN_BATCH = {"labels": tf.constant([[0, 2]])}


def test_the_symmetric_divergence_by_hand():
    """KL(p || q) = 1/2 log 2 - 1/4 log 2 = KL(q || p) for p = (1/2, 1/4, 1/4) and q = (1/4, 1/4, 1/2)."""
    divergence = symmetric_divergence(tf.constant(Given.FIRST), tf.constant(Given.SECOND))
    np.testing.assert_allclose(divergence, [[np.log(2) / 4, 0.0]], rtol=1e-6)
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(5), 3)
    expected = ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)) / 2
    np.testing.assert_allclose(symmetric_divergence(np.log(p) + 3.0, np.log(q) - 1.0), expected, rtol=1e-5)


def test_r_drop_of_given_logits_by_hand():
    """At position 0 the mean of log 2 and log 4, and alpha / 2 times log(2) / 4; at position 1 the passes agree."""
    losses, weights = RDrop(Given(), label_smoothing=0.0, alpha=3.0)(None, GIVEN_BATCH, training=True)
    np.testing.assert_allclose(losses, [[1.5 * np.log(2) + 1.5 * np.log(2) / 4, np.log(4)]], rtol=1e-6)
    np.testing.assert_array_equal(weights, [[1.0, 0.0]])


@pytest.mark.parametrize("objective", [Supervised(Given(), 0.3), RDrop(Given(), 0.3, alpha=0.0)])
def test_labels_are_smoothed_in_training_only(objective):
    plain, _ = objective(None, GIVEN_BATCH, training=False)
    np.testing.assert_allclose(plain, [[np.log(2), np.log(4)]], rtol=1e-6)
    smoothed, _ = Supervised(Given(), 0.3)(None, GIVEN_BATCH, training=True)
    np.testing.assert_allclose(smoothed[0, 0], 0.8 * np.log(2) + 0.2 * np.log(4), rtol=1e-6)


class Sequences:
    """Next tokens of an encoder-decoder, as `tasks/translate.py` has them."""

    def forward(self, model, ids, training):
        return model({"encoder_token_ids": ids, "decoder_token_ids": ids[:, :-1]}, training=training)

    def loss(self, logits, ids, label_smoothing):
        return cross_entropy(logits, ids[:, 1:], label_smoothing), tf.cast(ids[:, 1:] != 0, tf.float32)


IDS = tf.constant([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [4, 4, 4, 0, 0], [9, 8, 7, 6, 0]])
NAMED = {
    "supervised": {"name": "supervised"},
    "r_drop": {"name": "r_drop", "alpha": 5.0},
    "fgm": {"name": "fgm", "epsilon": 1.0},
    "pgd": {"name": "pgd", "epsilon": 1.0, "step_size": 0.6, "steps": 2},
    "free_lb": {"name": "free_lb", "epsilon": 1.0, "step_size": 0.6, "steps": 2},
    "fgm_around_r_drop": {"name": "fgm", "epsilon": 1.0, "around": {"name": "r_drop", "alpha": 5.0}},
    "fgm_around_fgm": {"name": "fgm", "epsilon": 1.0, "around": {"name": "fgm", "epsilon": 0.5}},
}
each_objective = pytest.mark.parametrize("name", NAMED)


def built(name, step=0):
    settings = pydantic.TypeAdapter(ObjectiveSettings).validate_python(NAMED[name])
    return build_objective(settings, Sequences(), label_smoothing=0.1, seed=1, step=tf.Variable(step))


def small_model(dropout):
    keras.utils.set_random_seed(1)
    return EncoderDecoder(10, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, dropout=dropout)


def test_a_recipe_names_what_is_built():
    objective = built("fgm_around_r_drop")
    assert (type(objective), objective.epsilon) == (Fgm, 1.0)
    assert (type(objective.objective), objective.objective.alpha) == (RDrop, 5.0)
    assert objective.objective.label_smoothing == 0.1
    free = built("free_lb")
    assert (type(free), free.epsilon, free.step_size, free.steps, free.seed) == (FreeLb, 1.0, 0.6, 2, 1)
    arguments = {"input": "image", "input_range": (-1.0, 1.0), "epsilon": 0.1, "step_size": 0.02, "steps": 4}
    on_input = build_objective(PgdInputSettings(name="pgd_input", **arguments), Sequences(), 0.0, 1, tf.Variable(0))
    assert type(on_input) is PgdInput
    assert {name: getattr(on_input, name) for name in arguments} == arguments


def pgd_on(name):
    return {"name": "pgd_input", "input": name, "epsilon": 0.1, "step_size": 0.1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            NAMED["fgm"],
            "^r.yaml:4: training.objective: the model has no embedding that can be perturbed; use pgd_input",
        ),
        (NAMED["free_lb"], "^r.yaml:4: training.objective: the model has no embedding"),
        (
            pgd_on("labels"),
            r"^r.yaml:4: training.objective: no float input 'labels'; the batch has image \(float",
        ),
        (pgd_on("picture"), "training.objective: no float input 'picture'"),
        ({**pgd_on("image"), "around": NAMED["fgm"]}, "^r.yaml:4: training.objective.around: the model has no emb"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_with_its_place(settings, message):
    inputs = {"image": tf.float32, "labels": tf.int32}
    settings = pydantic.TypeAdapter(ObjectiveSettings).validate_python(settings)
    with pytest.raises(UserError, match=message):
        check_objective(settings, keras.layers.Dense(1), inputs, "r.yaml:4: training.objective")


@each_objective
def test_an_objective_that_fits(name):
    settings = pydantic.TypeAdapter(ObjectiveSettings).validate_python(NAMED[name])
    check_objective(settings, small_model(0.0), {}, "r.yaml:4: training.objective")


@each_objective
def test_evaluation_is_that_of_the_task(name):
    model = small_model(dropout=0.5)
    losses, weights = built(name)(model, IDS, training=False)
    expected, expected_weights = Supervised(Sequences())(model, IDS, training=False)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(weights, expected_weights)


def test_r_drop_without_dropout_is_supervised():
    model = small_model(dropout=0.0)
    losses, weights = built("r_drop")(model, IDS, training=True)
    expected, expected_weights = built("supervised")(model, IDS, training=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(weights, expected_weights)


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"free_lb"}))
def test_halves_of_a_batch_have_the_losses_of_the_whole(name):
    """Without dropout; the random starts of FreeLB are drawn for each half anew, as masks of dropout are."""
    model, objective = small_model(dropout=0.0), built(name)
    whole, _ = objective(model, IDS, training=True)
    halves = [objective(model, half, training=True)[0] for half in (IDS[:2], IDS[2:])]
    np.testing.assert_allclose(tf.concat(halves, axis=0), whole, atol=2e-5)


def test_r_drop_sees_different_masks():
    """The same passes without the divergence differ by what it adds: something at every position."""
    losses = []
    for alpha in (0.0, 2.0):
        objective = RDrop(Sequences(), label_smoothing=0.0, alpha=alpha)
        losses.append(objective(small_model(dropout=0.5), IDS, training=True)[0].numpy())
    assert (losses[1] - losses[0] > 1e-4).all()


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"fgm_around_fgm"}))
def test_two_steps_of_training(name):
    """The graph begins with the loss of eager execution, changes every weight, and leaves the model as it was."""
    model, objective = small_model(dropout=0.0), built(name)
    trainer = Trainer(model, objective)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    losses, weights = objective(model, IDS, training=True)
    before = [variable.numpy() for variable in model.trainable_variables]
    step = tf.function(trainer.train_step, autograph=False)
    first, second = step([IDS]), step([IDS])
    assert float(first["loss"]) == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    assert np.isfinite(float(second["gradient_norm"]))
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert np.isfinite(variable.numpy()).all()
        assert np.abs(variable.numpy() - value).max() > 0, variable.path
    assert model.embedding.active.functions == ()
