"""Objectives on perturbed input, on a linear model whose perturbed loss and gradient are worked out in NumPy."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.layers.embedding import TokenEmbedding
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.adversarial import Fgm, FreeLb, Pgd, PgdInput, no_perturbation, perturbed_pass
from kerasllm.training.objectives import RDrop, Supervised, cross_entropy, symmetric_divergence

V, D, C = 7, 4, 3
IDS = np.array([[3, 4, 5], [6, 3, 0]], "int32")
OTHER_IDS = np.array([[1, 2, 0], [5, 6, 1]], "int32")
LABELS = np.array([[0, 1, 2], [2, 1, 0]], "int32")
WEIGHTS = (IDS != 0).astype("float32")
BATCH = {"ids": tf.constant(IDS), "other_ids": tf.constant(OTHER_IDS), "labels": tf.constant(LABELS)}


class Linear(keras.Model):
    """logits = (e(ids) + 2 e(other ids)) W: two calls of one embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = TokenEmbedding(V, D)
        self.kernel = self.add_weight(name="kernel", shape=(D, C), initializer="glorot_normal")
        self.built = True

    def call(self, inputs, training=False):
        vectors = self.embedding(inputs["ids"]) + 2.0 * self.embedding(inputs["other_ids"])
        return tf.einsum("btd,dc->btc", vectors, tf.convert_to_tensor(self.kernel))


class Task:
    """Cross-entropy of a class for each position of `ids` that is no padding."""

    def forward(self, model, batch, training):
        return model(batch, training=training)

    def loss(self, logits, batch, label_smoothing):
        return cross_entropy(logits, batch["labels"], label_smoothing), tf.cast(batch["ids"] != 0, tf.float32)


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    return Linear()


def numpy_parts(model):
    """The embedded ids and other ids, [2, 3, 4] each, and the kernel [4, 3]."""
    table, kernel = model.embedding.table.numpy() * D**0.5, model.kernel.numpy()
    return table[IDS], table[OTHER_IDS], kernel


def numpy_losses(vectors, kernel):
    """Losses [2, 3] of embedded vectors [2, 3, 4], and p - y [2, 3, 3], their gradient by the logits."""
    exponentials = np.exp(vectors @ kernel)
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    one_hot = np.eye(C)[LABELS]
    return -np.log((probabilities * one_hot).sum(-1)), probabilities - one_hot


def length(x):
    return np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))


def gradient_of_sum(objective, model):
    """The gradients of the weighted sum of the losses by table and kernel, as the trainer takes them."""
    variables = [model.embedding.table.value, model.kernel.value]
    with tf.GradientTape() as tape:
        losses, weights = objective(model, BATCH, training=True)
        total = tf.reduce_sum(losses * weights)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(total, variables)]


def test_fgm_by_hand(model):
    """The gradient by e is w (p - y) W', by the other e twice that; each sequence has a step of length epsilon."""
    epsilon = 0.7
    ids, other, kernel = numpy_parts(model)
    vectors = ids + 2 * other
    clean, error = numpy_losses(vectors, kernel)
    gradient = WEIGHTS[..., np.newaxis] * error @ kernel.T
    r = epsilon * gradient / length(gradient)
    moved = vectors + r + 2 * r  # both gradients point the same way, so both steps are r
    adversarial, moved_error = numpy_losses(moved, kernel)
    losses, weights = Fgm(Supervised(Task()), epsilon)(model, BATCH, training=True)
    np.testing.assert_array_equal(weights, WEIGHTS)
    np.testing.assert_allclose(losses, (clean + adversarial) / 2, rtol=1e-5)
    assert (adversarial - clean)[WEIGHTS > 0].sum() > 0.1

    # Seen as constants, the perturbations leave the gradient of a linear model at two points.
    _, by_kernel = gradient_of_sum(Fgm(Supervised(Task()), epsilon), model)
    weighted, moved_weighted = (WEIGHTS[..., np.newaxis] * each / 2 for each in (error, moved_error))
    expected = np.einsum("btd,btc->dc", vectors, weighted) + np.einsum("btd,btc->dc", moved, moved_weighted)
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-4, atol=1e-6)


def test_the_gradient_by_the_table_does_not_flow_through_the_perturbation(model):
    ids, other, kernel = numpy_parts(model)
    error = numpy_losses(ids + 2 * other, kernel)[1]
    gradient = WEIGHTS[..., np.newaxis] * error @ kernel.T
    moved = ids + 2 * other + 3 * 0.7 * gradient / length(gradient)
    moved_gradient = WEIGHTS[..., np.newaxis] * numpy_losses(moved, kernel)[1] @ kernel.T
    expected = np.zeros((V, D))
    for positions, factor in ((IDS, 1), (OTHER_IDS, 2)):
        np.add.at(expected, positions, factor * D**0.5 * (gradient + moved_gradient) / 2)
    by_table, _ = gradient_of_sum(Fgm(Supervised(Task()), 0.7), model)
    np.testing.assert_allclose(by_table, expected, rtol=1e-4, atol=1e-6)


def test_pgd_by_hand(model):
    """Three steps of 0.5, the last two of which leave the ball of 0.6 and are brought back to it."""
    ids, other, kernel = numpy_parts(model)
    r, lengths = np.zeros_like(ids), []
    for _ in range(3):
        error = numpy_losses(ids + 2 * other + 3 * r, kernel)[1]
        gradient = WEIGHTS[..., np.newaxis] * error @ kernel.T
        r = r + 0.5 * gradient / length(gradient)
        lengths.append(length(r).ravel())
        r *= np.minimum(1, 0.6 / length(r))
    assert (np.array(lengths) > 0.6).tolist() == [[False, False], [True, True], [True, True]]
    expected = (numpy_losses(ids + 2 * other, kernel)[0] + numpy_losses(ids + 2 * other + 3 * r, kernel)[0]) / 2
    losses, _ = Pgd(Supervised(Task()), epsilon=0.6, step_size=0.5, steps=3)(model, BATCH, training=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_fgm_is_one_step_of_pgd_in_a_ball_that_is_large_enough(model):
    fgm, _ = Fgm(Supervised(Task()), 0.7)(model, BATCH, training=True)
    pgd, _ = Pgd(Supervised(Task()), epsilon=100.0, step_size=0.7, steps=1)(model, BATCH, training=True)
    np.testing.assert_allclose(fgm, pgd, rtol=1e-6)


def test_free_lb_by_hand(model):
    """The mean of the losses at a random start, which lies in the ball, and at the two points above it."""
    objective = FreeLb(Supervised(Task()), epsilon=0.5, step_size=0.4, steps=3, seed=1, step=tf.Variable(4))
    ids, other, kernel = numpy_parts(model)
    starts = [
        objective.random_start(call, tf.constant(vectors), tf.constant(is_token)).numpy()
        for call, (vectors, is_token) in enumerate([(ids, IDS != 0), (other, OTHER_IDS != 0)])
    ]
    perturbations, expected = list(starts), []
    for _ in range(3):
        losses, error = numpy_losses(ids + perturbations[0] + 2 * (other + perturbations[1]), kernel)
        expected.append(losses)
        gradient = WEIGHTS[..., np.newaxis] * error @ kernel.T
        moved = [r + 0.4 * gradient / length(gradient) for r in perturbations]
        perturbations = [r * np.minimum(1, 0.5 / length(r)) for r in moved]
    losses, weights = objective(model, BATCH, training=True)
    np.testing.assert_allclose(losses, np.mean(expected, axis=0), rtol=1e-5)
    np.testing.assert_array_equal(weights, WEIGHTS)


def test_the_random_start_of_free_lb():
    """Uniform in [-epsilon, epsilon] / sqrt(N) at tokens, 0 at padding, and another one for each step and call."""
    step = tf.Variable(4)
    objective = FreeLb(Supervised(Task()), epsilon=0.5, step_size=0.4, steps=3, seed=1, step=step)
    vectors, is_token = tf.zeros([2, 50, 64]), tf.sequence_mask([50, 10], 50)
    start = objective.random_start(0, vectors, is_token).numpy()
    np.testing.assert_array_equal(start, objective.random_start(0, vectors, is_token))
    assert (start[1, 10:] == 0).all()
    for row, tokens in enumerate([50, 10]):
        values = start[row, :tokens] * np.sqrt(tokens * 64)
        assert 0.49 < values.max() <= 0.5
        assert -0.5 <= values.min() < -0.49
        assert abs(values.mean()) < 0.05
    assert (length(start) <= 0.5).all()
    assert np.abs(start - objective.random_start(1, vectors, is_token)).max() > 0.001
    step.assign(5)
    assert np.abs(start - objective.random_start(0, vectors, is_token)).max() > 0.001


@pytest.mark.parametrize("around", [Fgm, lambda inside, epsilon: Pgd(inside, epsilon, 0.3, 2)])
def test_an_epsilon_of_0_gives_the_clean_gradient(model, around):
    clean = gradient_of_sum(Supervised(Task()), model)
    for ours, expected in zip(gradient_of_sum(around(Supervised(Task()), 0.0), model), clean, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_an_example_that_is_all_padding_stays_where_it_is(model):
    batch = {
        "ids": tf.zeros([1, 3], tf.int32),
        "other_ids": tf.zeros([1, 3], tf.int32),
        "labels": tf.zeros([1, 3], "int32"),
    }
    clean, _ = Supervised(Task())(model, batch, training=True)
    for objective in (Fgm(Supervised(Task()), 1.0), FreeLb(Supervised(Task()), 1.0, 0.5, 2, 0, tf.Variable(0))):
        np.testing.assert_allclose(objective(model, batch, training=True)[0], clean, rtol=1e-6)


class MaskedLinear(Linear):
    """As if dropout had drawn a fixed mask for the first half of the batch, and another for the second."""

    MASKS = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], "float32")

    def call(self, inputs, training=False):
        vectors = self.embedding(inputs["ids"]) + 2.0 * self.embedding(inputs["other_ids"])
        vectors *= np.repeat(self.MASKS, vectors.shape[0] // 2, axis=0)[:, np.newaxis]
        return tf.einsum("btd,dc->btc", vectors, tf.convert_to_tensor(self.kernel))


def test_fgm_around_r_drop_by_hand():
    """The perturbation goes up the gradient of the cross-entropies and of the divergence, in each pass by itself."""
    keras.utils.set_random_seed(3)
    model, epsilon, alpha = MaskedLinear(), 0.7, 20.0
    ids, other, kernel = numpy_parts(model)
    parts = [[tf.Variable(ids), tf.Variable(other)] for _ in range(2)]

    def r_drop_losses():
        logits = [(a + 2.0 * b) * mask @ kernel for (a, b), mask in zip(parts, model.MASKS, strict=True)]
        entropies = [tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, each) for each in logits]
        return tf.add_n(entropies) / 2 + alpha / 2 * symmetric_divergence(*logits)

    with tf.GradientTape() as tape:
        clean = r_drop_losses()
        total = tf.reduce_sum(clean * WEIGHTS)
    for pair, gradients in zip(parts, tape.gradient(total, parts), strict=True):
        for part, gradient in zip(pair, gradients, strict=True):
            part.assign_add(epsilon * gradient / length(gradient.numpy()))
    expected = (clean + r_drop_losses()) / 2
    inside = RDrop(Task(), label_smoothing=0.0, alpha=alpha)
    losses, weights = Fgm(inside, epsilon)(model, BATCH, training=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_array_equal(weights, WEIGHTS)
    assert np.abs(losses - inside(model, BATCH, training=True)[0]).max() > 0.1
    assert np.abs(losses - Fgm(Supervised(Task()), epsilon)(MaskedLinear(), BATCH, training=True)[0]).max() > 0.1


class Image(keras.Model):
    """logits = x W of an image x, flat."""

    def __init__(self):
        super().__init__()
        self.kernel = self.add_weight(name="kernel", shape=(D, C), initializer="glorot_normal")
        self.built = True

    def call(self, inputs, training=False):
        return tf.convert_to_tensor(inputs["image"]) @ tf.convert_to_tensor(self.kernel)


class ImageTask:
    def forward(self, model, batch, training):
        return model(batch, training=training)

    def loss(self, logits, batch, label_smoothing):
        return cross_entropy(logits, batch["labels"], label_smoothing), tf.ones(len(batch["labels"]))


IMAGES = {"image": tf.constant([[0.0, 0.5, 0.98, 0.3], [1.0, 0.2, 0.6, 0.01]]), "labels": tf.constant([0, 2])}


def test_pgd_on_an_input_by_hand():
    """Two steps of 0.04 by the sign of the gradient, no element further than 0.06, and all of them in [0, 1]."""
    keras.utils.set_random_seed(5)
    model = Image()
    kernel, start, one_hot = model.kernel.numpy(), IMAGES["image"].numpy(), np.eye(C)[[0, 2]]
    x, found = start, []
    for _ in range(3):
        probabilities = tf.nn.softmax(x @ kernel).numpy()
        found.append(-np.log((probabilities * one_hot).sum(-1)))
        x = x + 0.04 * np.sign((probabilities - one_hot) @ kernel.T)
        x = np.clip(np.clip(x, start - 0.06, start + 0.06), 0.0, 1.0).astype("float32")
    objective = PgdInput(Supervised(ImageTask()), "image", (0.0, 1.0), epsilon=0.06, step_size=0.04, steps=2)
    losses, weights = objective(model, IMAGES, training=True)
    np.testing.assert_allclose(losses, (found[0] + found[2]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(weights, [1.0, 1.0])
    assert (found[2] > found[0] + 0.01).all()


def test_an_input_that_is_not_there_or_not_float_is_named():
    for name in ("picture", "labels"):
        objective = PgdInput(Supervised(ImageTask()), name, (0.0, 1.0), 0.1, 0.1, 1)
        with pytest.raises(UserError, match=rf"no float input '{name}'; the batch has image \(float32\), labels \(int"):
            objective(Image(), IMAGES, training=True)


def test_a_model_without_an_embedding_is_refused():
    with pytest.raises(UserError, match=r"^the model has no embedding .* use pgd_input"):
        Fgm(Supervised(ImageTask()), 1.0)(Image(), IMAGES, training=True)


def test_an_encoder_decoder_is_not_perturbed_at_padding():
    """Both its sequences are perturbed, source and target, by epsilon each; what its masks hide has no gradient."""
    keras.utils.set_random_seed(1)
    model = EncoderDecoder(12, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, dropout=0.0)
    source = tf.constant([[3, 4, 5, 2], [6, 2, 0, 0]])
    target = tf.constant([[1, 7, 8, 9, 2], [1, 9, 2, 0, 0]])

    def objective(model, batch, training):
        logits = model({"encoder_token_ids": source, "decoder_token_ids": target[:, :-1]}, training=training)
        return cross_entropy(logits, target[:, 1:]), tf.cast(target[:, 1:] != 0, tf.float32)

    following = perturbed_pass(objective, model, {}, no_perturbation).ascended(0.3, 1.0)
    for call, ids in enumerate((source, target[:, :-1])):
        perturbation = following(call, None, None).numpy()
        np.testing.assert_allclose(length(perturbation).ravel(), [0.3, 0.3], rtol=1e-5)
        assert (perturbation[ids.numpy() == 0] == 0).all()


# Run in a process of its own: the number of devices is fixed when TensorFlow starts.
TWO_REPLICAS = """
import json
import numpy as np
from kerasllm.environment import build_strategy, configure
configure()
import keras
import tensorflow as tf
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.adversarial import FreeLb, Pgd
from kerasllm.training.objectives import RDrop, cross_entropy
from kerasllm.training.trainer import Trainer

strategy = build_strategy(2)
ids = np.random.default_rng(0).integers(3, 20, (4, 7)).astype("int32")
for row, length in enumerate([7, 6, 2, 3]):  # the second replica has mostly padding
    ids[row, length:] = 0

class Task:
    def forward(self, model, ids, training):
        return model({"encoder_token_ids": ids, "decoder_token_ids": ids[:, :-1]}, training=training)

    def loss(self, logits, ids, label_smoothing):
        return cross_entropy(logits, ids[:, 1:], label_smoothing), tf.cast(ids[:, 1:] != 0, tf.float32)

def build_trainer():
    keras.utils.set_random_seed(1)
    model = EncoderDecoder(20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0)
    trainer = Trainer(model, Pgd(RDrop(Task(), 0.1, alpha=5.0), epsilon=1.0, step_size=0.6, steps=2))
    trainer.compile(optimizer=keras.optimizers.SGD(0.5))
    return trainer

def weights(trainer):
    return [variable.numpy().ravel().tolist() for variable in trainer.model.trainable_variables]

alone = build_trainer()
losses = [float(alone.train_step([tf.constant(ids)])["loss"]) for _ in range(2)]
with strategy.scope():
    trainer = build_trainer()
dataset = strategy.distribute_datasets_from_function(
    lambda context: tf.data.Dataset.from_tensor_slices((ids,)).batch(2).repeat()
)
fitted = []
callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: fitted.append(float(logs["loss"])))
trainer.fit(dataset, steps_per_epoch=2, shuffle=False, verbose=0, callbacks=[callback])

free_lb = FreeLb(None, 1.0, 0.5, 2, seed=1, step=trainer.optimizer.iterations)
draw = tf.function(lambda: free_lb.random_start(0, tf.zeros([1, 2, 3]), tf.ones([1, 2], tf.bool)))
starts = [start.numpy().ravel().tolist() for start in strategy.experimental_local_results(strategy.run(draw))]
print(json.dumps({"alone": [losses, weights(alone)], "fitted": [fitted, weights(trainer)], "starts": starts}))
"""


def test_two_replicas_equal_one():
    """Perturbations are those of each example, and the replicas, which share the embedding, do not mix theirs."""
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (losses, weights), (fitted_losses, fitted_weights) = found["alone"], found["fitted"]
    assert fitted_losses == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(fitted_weights, weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6)
    first, second = found["starts"]
    assert np.abs(np.subtract(first, second)).max() > 0.01


def test_pixels_are_moved_as_floats_in_their_own_range():
    keras.utils.set_random_seed(5)
    model = Image()
    pixels = tf.cast(tf.round(255 * IMAGES["image"]), tf.uint8)

    class PixelTask(ImageTask):
        def forward(self, model, batch, training):
            seen.append(batch["image"])
            return model({"image": tf.cast(batch["image"], tf.float32) / 255}, training=training)

    seen = []
    batch = {**IMAGES, "image": pixels}
    objective = PgdInput(Supervised(PixelTask()), "image", (0.0, 255.0), epsilon=8.0, step_size=5.0, steps=2)
    losses, _ = objective(model, batch, training=True)
    clean, first, second = (each.numpy() for each in seen)
    np.testing.assert_array_equal(clean, pixels.numpy())
    moved = np.abs(first - clean)
    assert set(np.unique(moved)) <= {0.0, 3.0, 5.0}, "less at the end of the range"
    assert np.abs(second - clean).max() == 8
    assert second.min() >= 0
    assert second.max() <= 255
    assert (losses.numpy() > Supervised(PixelTask())(model, batch, training=True)[0].numpy()).all()
