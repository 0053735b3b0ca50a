"""What a teacher adds to a loss, by hand and against a full formula; and that it composes and splits exactly."""

import keras
import numpy as np
import pydantic
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.models.bert import Bert
from kerasllm.training.distillation import DistilledTask, Teacher, hidden_loss, soft_loss
from kerasllm.training.objective_settings import ObjectiveSettings
from kerasllm.training.objectives import RDrop, Supervised, build_objective, check_objective, cross_entropy
from kerasllm.training.trainer import Trainer

SIZES = {"num_heads": 2, "intermediate_dim": 8, "max_sequence_length": 8}
IDS = tf.constant([[1, 4, 5, 2], [1, 6, 2, 0], [1, 2, 0, 0], [0, 0, 0, 0]])
BATCH = {"token_ids": IDS, "labels": tf.constant([[1], [3], [2], [0]])}


class Classes:
    """One of three classes of a text; the last row of the batch is padding."""

    def forward(self, model, batch, training):
        hidden = model({"token_ids": batch["token_ids"]}, training=training)
        return model.head(model.pooled(hidden))[:, None]

    def loss(self, logits, batch, label_smoothing):
        weights = tf.cast(batch["token_ids"][:, :1] != 0, tf.float32)
        return cross_entropy(logits, tf.maximum(batch["labels"] - 1, 0), label_smoothing), weights


def bert(num_layers, hidden_dim, seed, dropout=0.0):
    keras.utils.set_random_seed(seed)
    model = Bert(9, num_layers, hidden_dim=hidden_dim, **SIZES, dropout=dropout, attention_dropout=dropout)
    model.head = keras.layers.Dense(3)
    model.head.build((None, hidden_dim))
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape) * 0.5)
    return model


def teacher_of(student_dim, dropout=0.5):
    """Two layers of 8, with a projection where the student is of another width."""
    model = bert(2, 8, seed=7, dropout=dropout)

    def ask(batch):
        with model.recorded_hidden() as hidden:
            return Classes().forward(model, batch, training=False), hidden

    if student_dim == 8:
        return model, Teacher(ask)
    projection = keras.layers.Dense(8, use_bias=False, kernel_initializer=keras.initializers.GlorotUniform(seed=1))
    projection.build((None, None, student_dim))
    return model, Teacher(ask, projection)


def built(teacher, **settings):
    settings = {"name": "distillation", "teacher": "t", **settings}
    settings = pydantic.TypeAdapter(ObjectiveSettings).validate_python(settings)
    return build_objective(settings, Classes(), 0.1, 1, tf.Variable(0), {"t": teacher})


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_the_soft_loss_by_hand():
    """Logits 2 log(1/2, 1/4, 1/4) at temperature 2 are these probabilities; 4 KL against thirds."""
    theirs, ours = 2 * np.log([[0.5, 0.25, 0.25]]), np.zeros((1, 3))
    expected = 4 * (0.5 * np.log(1.5) + 0.5 * np.log(0.75))
    np.testing.assert_allclose(soft_loss(tf.constant(ours), tf.constant(theirs), 2.0), [expected], rtol=1e-6)
    np.testing.assert_allclose(soft_loss(tf.constant(theirs + 1), tf.constant(theirs), 2.0), [0.0], atol=1e-7)
    np.testing.assert_allclose(soft_loss(tf.constant([[3.0]]), tf.constant([[1.0]]), 2.0), [4.0])


def test_the_gradient_of_the_soft_loss():
    """tau (q - p) of the probabilities at temperature tau; and none for the teacher."""
    generator = np.random.default_rng(0)
    ours, theirs = (tf.Variable(generator.normal(size=(4, 5)), dtype=tf.float32) for _ in range(2))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(soft_loss(ours, theirs, 3.0))
    to_ours, to_theirs = tape.gradient(total, [ours, theirs])
    np.testing.assert_allclose(to_ours, 3 * (softmax(ours.numpy() / 3) - softmax(theirs.numpy() / 3)), atol=1e-5)
    assert to_theirs is None


def test_what_the_teacher_rules_out_counts_nothing():
    ruled_out = tf.constant([[0.0, 1.0, -np.inf]])
    both = soft_loss(ruled_out, ruled_out, 2.0)
    np.testing.assert_allclose(both, [0.0], atol=1e-7)
    one = soft_loss(tf.constant([[0.0, 1.0, -30.0]]), ruled_out, 2.0)
    np.testing.assert_allclose(one, [0.0], atol=1e-5)


def test_hidden_vectors_are_compared_at_tokens_layer_by_layer():
    generator = np.random.default_rng(0)
    is_token = np.array([[True, True, False], [True, False, False], [False] * 3])
    ours, theirs = generator.normal(size=(3, 3, 3, 2)), generator.normal(size=(5, 3, 3, 4))
    kernel = generator.normal(size=(2, 4))
    found = hidden_loss(
        [(tf.constant(x, tf.float32), is_token) for x in ours],
        [(tf.constant(x, tf.float32), is_token) for x in theirs],
        lambda x: x @ tf.constant(kernel, tf.float32),
    )
    squares = (ours @ kernel - theirs[[0, 2, 4]]) ** 2
    expected = [squares[:, 0, :2].mean(), squares[:, 1, :1].mean(), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bert_records_its_hidden_vectors():
    model = bert(2, 4, seed=1)
    with model.recorded_hidden() as outer:
        model({"token_ids": IDS})
        with model.recorded_hidden() as inner:
            last = model({"token_ids": IDS[:2]})
    model({"token_ids": IDS})
    assert [vectors.shape for vectors, _ in outer] == [(4, 4, 4)] * 3 + [(2, 4, 4)] * 3
    assert len(inner) == 3
    np.testing.assert_array_equal(inner[-1][0], last)
    np.testing.assert_array_equal(inner[0][1], IDS[:2] != 0)


@pytest.mark.parametrize("student_dim", [4, 8])
def test_the_loss_is_the_sum_of_its_parts(student_dim):
    student, (model, teacher) = bert(1, student_dim, seed=2), teacher_of(student_dim)
    losses, weights = built(teacher, temperature=2.0, soft_share=0.3, hidden_weight=0.2)(student, BATCH, training=True)
    plain, expected_weights = Supervised(Classes(), 0.1)(student, BATCH, training=True)
    logits = [Classes().forward(each, BATCH, training=False) for each in (student, model)]
    with student.recorded_hidden() as ours, model.recorded_hidden() as theirs:
        for each in (student, model):
            each({"token_ids": IDS})
    far = hidden_loss(ours, theirs, teacher.projection or tf.identity)[:, None]
    expected = 0.7 * plain + 0.3 * soft_loss(*logits, 2.0) + 0.2 * far
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(weights, expected_weights)
    assert float(far[0, 0]) > 0.1


def test_evaluation_is_that_of_the_task():
    student, (_, teacher) = bert(1, 4, seed=2, dropout=0.5), teacher_of(4)
    losses, _ = built(teacher, hidden_weight=0.2)(student, BATCH, training=False)
    expected, _ = Supervised(Classes())(student, BATCH, training=False)
    np.testing.assert_array_equal(losses, expected)


def test_it_composes_with_other_objectives():
    """R-Drop inside: without dropout its passes agree, and so do their losses. An attack around it raises it."""
    student, (_, teacher) = bert(1, 4, seed=2), teacher_of(4)
    plain, _ = built(teacher, hidden_weight=0.2)(student, BATCH, training=True)
    r_drop = built(teacher, hidden_weight=0.2, around={"name": "r_drop", "alpha": 1.0})
    assert type(r_drop.objective) is RDrop
    np.testing.assert_allclose(r_drop(student, BATCH, training=True)[0], plain, rtol=1e-4, atol=1e-5)
    inside = {"name": "distillation", "teacher": "t", "soft_share": 1.0}
    settings = {"name": "fgm", "epsilon": 0.05, "around": inside}
    settings = pydantic.TypeAdapter(ObjectiveSettings).validate_python(settings)
    attack = build_objective(settings, Classes(), 0.1, 1, tf.Variable(0), {"t": teacher})
    soft, _ = built(teacher, soft_share=1.0)(student, BATCH, training=True)
    assert (attack(student, BATCH, training=True)[0] - soft).numpy()[:3].min() > 0


def test_parts_of_a_batch_have_the_losses_of_the_whole():
    """Shorter parts have less padding, which counts nothing."""
    student, (_, teacher) = bert(1, 4, seed=2), teacher_of(4)
    objective = built(teacher, hidden_weight=0.2)
    whole, _ = objective(student, BATCH, training=True)
    parts = [{name: x[:2] for name, x in BATCH.items()}, {name: x[2:, :2] for name, x in BATCH.items()}]
    losses = [objective(student, part, training=True)[0] for part in parts]
    np.testing.assert_allclose(tf.concat(losses, axis=0)[:3], whole[:3], rtol=1e-4)


def test_training_changes_the_student_and_the_projection_alone():
    """A phase without a teacher leaves the projection as it is."""
    student, (model, teacher) = bert(1, 4, seed=2), teacher_of(4)
    kernel = teacher.projection.kernel
    trainer = Trainer(student, built(teacher, hidden_weight=1.0), helpers=teacher.projection.weights)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(trainer.trained_variables)
    trainer.compile(optimizer=optimizer)
    before = {id(v): v.numpy() for v in [*student.weights, *model.weights, kernel]}
    losses, weights = trainer.objective(student, BATCH, training=True)
    figures = tf.function(trainer.train_step, autograph=False)([BATCH])
    assert float(figures["loss"]) == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    assert all(np.abs(v.numpy() - before[id(v)]).max() > 0 for v in [*student.weights, kernel])
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), before[id(variable)])
    assert any(variable is kernel for variable in trainer.state_variables)
    assert not any(variable is kernel for variable in student.weights)
    learnt, trainer.objective = kernel.numpy(), Supervised(Classes())
    tf.function(trainer.train_step, autograph=False)([BATCH])
    np.testing.assert_array_equal(kernel.numpy(), learnt)


def test_settings_that_fit_nothing():
    adapter = pydantic.TypeAdapter(ObjectiveSettings)
    with pytest.raises(ValueError, match="nothing is learnt from the teacher; raise soft_share or hidden_weight"):
        adapter.validate_python({"name": "distillation", "teacher": "t", "soft_share": 0.0})
    settings = adapter.validate_python({"name": "distillation", "teacher": "t", "hidden_weight": 1.0})
    with pytest.raises(UserError, match=r"^r.yaml:4: x: hidden_weight: this model cannot record its hidden vectors"):
        check_objective(settings, keras.layers.Dense(1), {}, "r.yaml:4: x")
    check_objective(settings, bert(1, 4, seed=1), {}, "r.yaml:4: x")


def test_the_loss_of_several_positions_is_at_each_of_them():
    """[B, P, C] logits: each position has its own distance, and the hidden vectors count at all of them."""

    class Positions(Classes):
        def forward(self, model, batch, training):
            model({"token_ids": batch["token_ids"]}, training=training)
            return tf.constant([[[0.0, 1.0], [2.0, 0.0]]] * 4)

        def loss(self, logits, batch, label_smoothing):
            return tf.zeros([4, 2]), tf.ones([4, 2])

    student, (_, teacher) = bert(1, 4, seed=2), teacher_of(4)
    theirs = tf.constant([[[1.0, 0.0], [2.0, 0.0]]] * 4)
    told = Teacher(lambda batch: (theirs, teacher.ask(batch)[1]), teacher.projection)
    losses, _ = Supervised(DistilledTask(Positions(), told, 1.0, 1.0, 0.5))(student, BATCH, training=True)
    losses = losses.numpy()
    at_first = soft_loss(tf.constant([0.0, 1.0]), tf.constant([1.0, 0.0]), 1.0)
    np.testing.assert_allclose(losses[:, 0] - losses[:, 1], [float(at_first)] * 4, rtol=1e-4)
    assert losses[:3, 1].min() > 0.01
