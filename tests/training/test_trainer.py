"""One optimizer step is the step of the whole global batch, on one replica and on two, with uneven padding."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.environment import compute_precision
from kerasllm.layers.dropout import Dropout
from kerasllm.training.optimizer_settings import AdamWSettings
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.step_guard import LossScale, StepGuard
from kerasllm.training.trainer import Trainer

# Run in a process of its own: the number of devices is fixed when TensorFlow starts, and there is one strategy each.
TRAIN = """
import json, sys
import numpy as np
from kerasllm.environment import build_strategy, configure
configure()
import keras
import tensorflow as tf
from kerasllm.models.encoder_decoder import EncoderDecoder
from kerasllm.training.objectives import cross_entropy
from kerasllm.training.optimizer_settings import AdamWSettings
from kerasllm.training.optimizers import build_optimizer
from kerasllm.training.step_guard import LossScale, StepGuard
from kerasllm.training.trainer import Trainer

num_replicas, micro_batches, is_scaled = (int(each) for each in sys.argv[1:])
strategy = build_strategy(num_replicas)
keras.utils.set_random_seed(1)

def batches():
    rng = np.random.default_rng(0)
    for _ in range(8):
        ids = rng.integers(3, 20, (6, 9)).astype("int32")
        for row, length in enumerate([9, 8, 9, 2, 3, 2]):  # the second replica has mostly padding
            ids[row, length:] = 0
        yield ids

def elements():
    for ids in batches():
        for share in np.array_split(ids, num_replicas):
            yield tuple(np.array_split(share, micro_batches))

def objective(model, ids, training):
    logits = model({"encoder_token_ids": ids, "decoder_token_ids": ids[:, :-1]}, training=training)
    return cross_entropy(logits, ids[:, 1:], 0.1), tf.cast(ids[:, 1:] != 0, tf.float32)

with strategy.scope():
    model = EncoderDecoder(20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0)
    guard = StepGuard(loss_scale=LossScale(growth_steps=3)) if is_scaled else None
    averaging = {"average_decay": lambda step: tf.constant(0.5), "lookahead_every": 3}
    trainer = Trainer(model, objective, clip_norm=0.05, guard=guard, **averaging)
    optimizer = build_optimizer(AdamWSettings(epsilon=1e-4), 0.01, model.trainable_variables)
    trainer.compile(optimizer=optimizer)
signature = (tf.TensorSpec([None, None], tf.int32),) * micro_batches
dataset = strategy.distribute_datasets_from_function(
    lambda context: tf.data.Dataset.from_generator(elements, output_signature=signature)
)
collected = []
callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: collected.append(dict(logs)))
trainer.fit(dataset, steps_per_epoch=8, shuffle=False, verbose=0, callbacks=[callback])
weights = [variable.numpy().ravel().tolist() for variable in [*model.trainable_variables, *trainer.averages]]
print(json.dumps({"weights": weights, "logs": collected}))
"""


def trained(num_replicas, micro_batches, is_scaled=0):
    command = [sys.executable, "-c", TRAIN, *map(str, (num_replicas, micro_batches, is_scaled))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def straight():
    return trained(1, 1)


@pytest.mark.parametrize(("num_replicas", "micro_batches", "is_scaled"), [(1, 3, 0), (2, 1, 0), (2, 3, 0), (2, 3, 1)])
def test_a_step_is_the_same_however_the_batch_is_split(straight, num_replicas, micro_batches, is_scaled):
    """With unequal padding, clipping and an average that the weights return to; (2, 3) gives every micro-batch one row,
    some of them hardly a token. The last one has a loss scale besides, which is doubled on the way."""
    split = trained(num_replicas, micro_batches, is_scaled)
    ours, theirs = (np.concatenate(each["weights"]) for each in (split, straight))
    assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    for ours, theirs in zip(split["logs"], straight["logs"], strict=True):
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-5)
    assert [logs.get("loss_scale") for logs in split["logs"]][::3] == ([256, 512, 1024] if is_scaled else [None] * 3)
    assert straight["logs"][0]["gradient_norm"] > 0.05, "clipping must have had something to do"
    assert straight["logs"][0]["padding_share"] == pytest.approx(1 - 27 / 48)


def test_what_is_dropped_follows_from_the_step_and_not_from_the_past():
    """A trainer set to step 3 drops what one drops that has done three steps, and another step drops others."""

    def objective(model, batch, training):
        return model(tf.range(1.0, 1001.0), training=training), tf.ones([1000])

    def trainer():
        model = DroppedScale()
        trainer = Trainer(model, objective)
        trainer.compile(optimizer=keras.optimizers.SGD(0.0))
        return trainer

    straight, resumed = trainer(), trainer()
    losses = [float(straight.train_step([{}, {}])["loss"]) for _ in range(4)]
    resumed.optimizer.iterations.assign(3)
    assert float(resumed.train_step([{}, {}])["loss"]) == losses[3]
    assert len(set(losses)) == 4


class DroppedScale(keras.Model):
    """y = a * x, some of it dropped twice."""

    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.dropouts = [Dropout(0.5, seed=1), Dropout(0.5, seed=2)]
        self.built = True

    def call(self, x, training=False):
        for dropout in self.dropouts:
            x = dropout(x, training=training)
        return self.a * x


class Scale(keras.Model):
    """y = a * x with a single weight, so that a step can be worked out by hand."""

    def __init__(self):
        super().__init__()
        self.a = self.add_weight(name="a", shape=(), initializer="ones")
        self.built = True

    def call(self, x, training=False):
        return self.a * x


def test_a_step_by_hand():
    """Losses a * x with weights (1, 1, 0, 1): the gradient is the mean of x over the weighted positions, clipped."""

    def objective(model, batch, training):
        return model(batch["x"]), batch["w"]

    model = Scale()
    trainer = Trainer(model, objective, clip_norm=1.5)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    batch = {"x": tf.constant([[1.0, 2.0], [99.0, 6.0]]), "w": tf.constant([[1.0, 1.0], [0.0, 1.0]])}
    logs = trainer.train_step([batch])
    assert float(logs["loss"]) == pytest.approx(3.0)
    assert float(logs["gradient_norm"]) == pytest.approx(3.0)
    assert float(logs["weight"]) == 3.0
    assert float(model.a) == pytest.approx(1.0 - 0.1 * 1.5)


def test_a_row_that_occurs_twice_counts_twice_in_the_norm():
    """An embedding's gradient comes as a list of rows; its norm is that of their sum."""
    table = keras.layers.Embedding(3, 1)
    table.build()

    def objective(model, batch, training):
        return table(batch)[..., 0], tf.ones_like(batch, tf.float32)

    trainer = Trainer(table, objective)
    trainer.compile(optimizer=keras.optimizers.SGD(0.1))
    assert float(trainer.train_step([tf.constant([[1, 1]])])["gradient_norm"]) == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_one_batch_can_be_learnt_by_heart(precision):
    from kerasllm.models.encoder_decoder import EncoderDecoder
    from kerasllm.training.objectives import cross_entropy

    keras.utils.set_random_seed(1)
    source = tf.constant([[3, 4, 5], [6, 7, 0]])
    target = tf.constant([[1, 8, 9, 2], [1, 9, 2, 0]])

    def objective(model, batch, training):
        logits = model({"encoder_token_ids": source, "decoder_token_ids": target[:, :-1]}, training=training)
        return cross_entropy(logits, target[:, 1:]), tf.cast(target[:, 1:] != 0, tf.float32)

    with compute_precision(precision):
        model = EncoderDecoder(10, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=16, dropout=0.0)
    trainer = Trainer(model, objective, guard=StepGuard(loss_scale=LossScale()) if precision == "float16" else None)
    trainer.compile(optimizer=build_optimizer(AdamWSettings(), 0.02, model.trainable_variables))
    step = tf.function(trainer.train_step, autograph=False)
    losses = [float(step([{}])["loss"]) for _ in range(60)]
    assert losses[0] > 2.0
    assert losses[-1] < 0.01
    block = model.decoder_blocks[0]
    hidden, _ = model.encode(source)
    assert block.feed_forward(hidden).dtype == precision
    assert {weight.dtype for weight in model.weights} == {"float32"}
