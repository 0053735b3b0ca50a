"""Each optimizer takes the step of its formula; rates and decays differ between variables as the recipe says."""

import contextlib
import json
import re
import subprocess
import sys
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training import optimizer_settings
from kerasllm.training.optimizer_settings import AdamWSettings, MuonSettings, OptimizerSettings, SgdSettings
from kerasllm.training.optimizers import add_penalty_gradients, build_optimizer, rate_factors, weight_decays
from kerasllm.training.variable_paths import is_bias_or_norm, layer_decay_factors, matches_of

MEMBERS = typing.get_args(typing.get_args(OptimizerSettings)[0])
BY_NAME = {member().name: member for member in MEMBERS}
RATE = 0.1

each_optimizer = pytest.mark.parametrize("name", BY_NAME)


def variable(path, value):
    """A Keras variable under this path."""
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.asarray(value, "float32"), name=name)


def stepped(settings, values, gradients, rate=RATE):
    """The values of the variables {path: value} after one step for each list of gradients."""
    variables = [variable(path, value) for path, value in values.items()]
    optimizer = build_optimizer(settings, rate, variables)
    for each in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32) for gradient in each], variables)
    return [each.numpy() for each in variables]


# --- The formulas, each as (w, gradients) -> w, in float64. m, v are the states that start with 0. ---


def sgd(w, gradients):
    for g in gradients:
        w = w - RATE * g
    return w


def momentum(w, gradients, nesterov=False):
    v = 0.0
    for g in gradients:
        v = 0.9 * v - RATE * g
        w = w + 0.9 * v - RATE * g if nesterov else w + v
    return w


def adagrad(w, gradients):
    a = 0.1
    for g in gradients:
        a = a + g**2
        w = w - RATE * g / np.sqrt(a + 1e-7)
    return w


def rmsprop(w, gradients):
    s = 0.0
    for g in gradients:
        s = 0.9 * s + 0.1 * g**2
        w = w - RATE * g / np.sqrt(s + 1e-7)
    return w


def adam(w, gradients, decay=0.0):
    m, v = 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        w = w - RATE * decay * w
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        w = w - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-9)
    return w


def lion(w, gradients):
    m = 0.0
    for g in gradients:
        w = w - RATE * np.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
    return w


FORMULAS = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": lambda w, gradients: momentum(w, gradients, nesterov=True),
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": lambda w, gradients: adam(w, gradients, decay=0.01),
    "lion": lion,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_three_steps_by_hand(name):
    w = np.array([[1.0, -2.0, 0.5]])
    gradients = [np.array([[0.3, -0.1, 2.0]]), np.array([[-0.2, -0.4, 1.0]]), np.array([[0.1, 5.0, -0.3]])]
    (found,) = stepped(BY_NAME[name](), {"kernel": w}, [[g] for g in gradients])
    np.testing.assert_allclose(found, FORMULAS[name](w, gradients), rtol=1e-5)


def test_the_step_of_muon_is_near_orthogonal():
    """Its singular values are near 1, those of the gradient are not. The iteration ends between 0.68 and 1.14."""
    gradient = np.random.default_rng(0).normal(size=(4, 12)) * [[1], [2], [4], [8]]
    (w,) = stepped(MuonSettings(rms_rate=None), {"layer_0/kernel": np.zeros((4, 12))}, [[gradient]])
    singular_values = np.linalg.svd(w / -RATE, compute_uv=False)
    assert np.linalg.cond(gradient) > 5
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.25
    np.testing.assert_array_less(0, np.sum(w / -RATE * gradient))  # downhill
    (scaled,) = stepped(MuonSettings(), {"layer_0/kernel": np.zeros((4, 12))}, [[gradient]])
    np.testing.assert_allclose(scaled, w * 0.2 * np.sqrt(12), rtol=1e-5)


@pytest.mark.parametrize(
    ("path", "is_muon"),
    [
        ("encoder_layer_0/self_attention/output/kernel", True),
        ("multi_head_attention/query/kernel", True),
        ("embedding/table", False),
        ("encoder_positions/table", False),
        ("segment_embedding/kernel", False),
        ("logits/kernel", False),
        ("bert/answer_head/kernel", False),
        ("layer_0/norm/scale", False),
    ],
)
def test_muon_leaves_tables_heads_and_vectors_to_adamw(path, is_muon):
    """The first step of AdamW moves each element by the rate, whatever its gradient."""
    shape = (3,) if path.endswith("scale") else (3, 2)
    gradient = np.random.default_rng(0).normal(size=shape)
    (w,) = stepped(MuonSettings(rms_rate=None), {path: np.zeros(shape)}, [[gradient]])
    assert np.allclose(w, -RATE * np.sign(gradient), rtol=1e-4) is not is_muon


def test_the_step_of_adafactor_where_row_and_column_say_all():
    """Of a gradient whose squares are a column times a row nothing is lost: its first step is the sign, scaled."""
    w = np.array([[1.0, -2.0], [2.0, 1.0], [-1.0, 1.0]])
    gradient = np.array([[1.0], [2.0], [-3.0]]) * [[0.5, -4.0]]
    (found,) = stepped(BY_NAME["adafactor"](), {"kernel": w}, [[gradient]])
    np.testing.assert_allclose(found, w - RATE * np.sqrt(np.mean(w**2)) * np.sign(gradient), rtol=1e-5)


@each_optimizer
def test_the_same_steps_twice_give_the_same_bits(name):
    rng = np.random.default_rng(0)
    values = {"layer_0/kernel": rng.normal(size=(4, 3)), "layer_0/bias": rng.normal(size=3)}
    gradients = [[rng.normal(size=value.shape) for value in values.values()] for _ in range(3)]
    for one, two in zip(*(stepped(BY_NAME[name](), values, gradients) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, two)


@each_optimizer
def test_a_factor_of_a_half_halves_the_first_step_exactly(name):
    gradient = np.random.default_rng(0).normal(size=(4, 3))
    settings = BY_NAME[name](patterns=({"match": "layer_1", "learning_rate_factor": 0.5},))
    whole, half = stepped(
        settings, {"layer_0/kernel": np.zeros((4, 3)), "layer_1/kernel": np.zeros((4, 3))}, [[gradient, gradient]]
    )
    assert np.abs(whole).min() > 0
    np.testing.assert_array_equal(half, whole / 2)


@each_optimizer
def test_decay_takes_its_share_before_the_step_and_leaves_biases_and_norms(name):
    """With no gradient nothing but the decay is seen; the norm's pattern asks for one of its own and a lower rate."""
    pattern = {"match": "last_norm", "weight_decay": 0.5, "learning_rate_factor": 0.1}
    settings = BY_NAME[name](weight_decay=0.2, patterns=(pattern,))
    paths = ["layer_0/kernel", "layer_0/bias", "layer_0/norm/scale", "layer_0/norm/offset", "last_norm/scale"]
    found = stepped(settings, {path: np.ones((2, 2)) for path in paths}, [[np.zeros((2, 2))] * 5])
    assert [w[0, 0] for w in found] == pytest.approx([1 - RATE * 0.2, 1, 1, 1, 1 - 0.1 * RATE * 0.5], rel=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_by_default_it_is_kerass_own_adamw(amsgrad):
    """But for the rounding of the last digits, which the fused operation does elsewhere."""
    rng = np.random.default_rng(0)
    values = {"embedding/table": rng.normal(size=(5, 3)), "layer_0/bias": rng.normal(size=3)}
    gradients = [[rng.normal(size=value.shape) for value in values.values()] for _ in range(4)]
    theirs = [variable(path, value) for path, value in values.items()]
    keras_own = keras.optimizers.AdamW(RATE, weight_decay=0.01, beta_2=0.98, epsilon=1e-9, amsgrad=amsgrad)
    keras_own.exclude_from_weight_decay(var_names=["bias"])
    for each in gradients:
        keras_own.apply([tf.constant(gradient, tf.float32) for gradient in each], theirs)
    for ours, their in zip(stepped(AdamWSettings(amsgrad=amsgrad), values, gradients), theirs, strict=True):
        np.testing.assert_allclose(ours, their.numpy(), rtol=1e-6, atol=5e-7)


@each_optimizer
def test_to_the_outside_it_is_kerass(name):
    """The same class name, variables, learning rate and count of steps; a frozen variable is left out of a step."""
    variables = [variable("layer_0/kernel", np.ones((2, 2))), variable("layer_1/kernel", np.ones((2, 2)))]
    settings = BY_NAME[name](patterns=({"match": "layer_1", "learning_rate_factor": 0.0},))
    optimizer = build_optimizer(settings, RATE, variables)
    keras_class = getattr(keras.optimizers, settings.keras_class)
    keras_own = keras_class(RATE, **settings.keras_arguments)
    keras_own.build(variables)
    assert isinstance(optimizer, keras_class)
    endings = [[re.sub(r"^\w+?/", "", v.path) for v in each.variables] for each in (optimizer, keras_own)]
    assert endings[0] == endings[1]
    assert float(optimizer.learning_rate) == pytest.approx(RATE)
    optimizer.apply([tf.ones((2, 2))], variables[1:])
    assert int(optimizer.iterations) == 1
    np.testing.assert_array_equal(variables[1], np.ones((2, 2)))
    optimizer.apply([tf.ones((2, 2))], variables[:1])
    assert np.all(variables[0].numpy() != 1.0)


def test_rates_that_fall_from_layer_to_layer():
    """Two blocks in one stack and three in the other: their last have 1/2, embeddings stand below the deeper one."""
    expected = {
        "embedding/table": 1 / 16,
        "encoder_positions/table": 1 / 16,
        "encoder_layer_0/norm/scale": 1 / 4,
        "encoder_layer_1/feed_forward/expand/kernel": 1 / 2,
        "decoder_layer_0/feed_forward/expand/bias": 1 / 8,
        "decoder_layer_2/cross_attention/query/kernel": 1 / 2,
        "encoder_norm/scale": 1.0,
        "answer_head/kernel": 1.0,
    }
    assert layer_decay_factors(list(expected), 0.5) == list(expected.values())
    assert layer_decay_factors(["bert/layer_11/kernel", "bert/layer_5/kernel"], 0.5) == [1 / 2, 1 / 128]
    with pytest.raises(UserError, match="no variable of this model lies in a numbered block"):
        layer_decay_factors(["dense/kernel"], 0.5)


PATTERNS = (
    {"match": r"layer_0/.*kernel$", "learning_rate_factor": 0.1},
    {"match": "layer_0", "learning_rate_factor": 0.2, "weight_decay": 0.3},
)


def test_the_first_matching_pattern_counts_and_comes_on_top_of_layer_decay():
    settings = AdamWSettings(layer_decay=0.5, patterns=PATTERNS)
    paths = ["layer_0/a/kernel", "layer_0/a/bias", "layer_1/a/kernel", "layer_1/a/bias", "head/kernel"]
    assert rate_factors(settings, paths) == pytest.approx([0.25 * 0.1, 0.25 * 0.2, 0.5, 0.5, 1.0])
    assert weight_decays(settings, paths) == [0.01, 0.3, 0.01, 0.0, 0.01]


def test_a_pattern_that_matches_nothing():
    paths = [f"encoder_layer_{i}/{part}/kernel" for i in range(3) for part in ("self_attention", "feed_forward")]
    assert matches_of("layer_[12]/feed", paths) == [False, False, False, True, False, True]
    message = r"^'encodr_layer_1' matches no variable; the nearest are encoder_layer_1, "
    with pytest.raises(UserError, match=message):
        matches_of("encodr_layer_1", paths)
    settings = SgdSettings(patterns=({"match": "layer_0"}, {"match": "feed_fward/kernel"}))
    with pytest.raises(
        UserError, match=r"^patterns\[1\]\.match: 'feed_fward/kernel' matches no variable; .*feed_forward"
    ):
        build_optimizer(settings, RATE, [variable(path, [[1.0]]) for path in paths])


def test_biases_and_norms_are_known_by_their_names():
    left_alone = ["a/bias", "norm/scale", "norm/offset", "batch_norm/gamma", "batch_norm/beta", "lstm/recurrent_bias"]
    assert all(map(is_bias_or_norm, left_alone))
    assert not any(map(is_bias_or_norm, ["a/kernel", "embedding/table", "rescale/kernel", "bias_network/kernel"]))


def test_penalties_by_hand():
    """0.1 sign(w) + 0.5 w on top of the gradient of a kernel and a table; a bias has none; zero has no sign."""
    variables = [
        variable("a/kernel", [2.0, -4.0, 0.0]),
        variable("a/bias", [2.0]),
        variable("embedding/table", [[1.0]]),
    ]
    gradients = [tf.constant([1.0, 1.0, 1.0]), tf.constant([1.0]), tf.constant([[1.0]])]
    found = add_penalty_gradients(gradients, variables, l1=0.1, l2=0.5)
    np.testing.assert_allclose(found[0], [1 + 0.1 + 1.0, 1 - 0.1 - 2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [1.0])
    np.testing.assert_allclose(found[2], [[1.6]], rtol=1e-6)
    with tf.GradientTape() as tape:  # the same as the gradient of the penalty as it is written
        w = variables[0].value
        penalty = 0.1 * tf.reduce_sum(tf.abs(w)) + 0.5 / 2 * tf.reduce_sum(w**2)
    np.testing.assert_allclose(found[0] - gradients[0], tape.gradient(penalty, w), rtol=1e-6)
    untouched = add_penalty_gradients(gradients, variables, l1=0.0, l2=0.0)
    assert all(one is two for one, two in zip(untouched, gradients, strict=True))


def test_the_table_in_the_docstring_names_every_argument():
    table = optimizer_settings.__doc__.split("the step,")[1].split("All have")[0]
    for name, member in BY_NAME.items():
        row = re.search(rf"^    {name} .*(?:\n {{5,}}.*)*", table, re.MULTILINE)[0]
        common = set(optimizer_settings.BaseOptimizerSettings.model_fields) | {"name"}
        assert [key for key in member.model_fields if key not in common and key not in row] == []


# In a process of its own: the number of devices is fixed when TensorFlow starts, and there is one strategy each.
ON_REPLICAS = """
import json, sys, typing
import numpy as np
from kerasllm.environment import build_strategy, configure
configure()
import keras
import tensorflow as tf
from kerasllm.training.optimizer_settings import OptimizerSettings
from kerasllm.training.optimizers import build_optimizer

strategy = build_strategy(2)
rng = np.random.default_rng(0)
shapes = [(4, 3), (3,), (3, 3), (5, 3)]
paths = ["layer_0", "layer_0_bias", "layer_1", "embedding"]
starts = [rng.normal(size=shape).astype("float32") for shape in shapes]
gradients = [[rng.normal(size=shape).astype("float32") for shape in shapes] for _ in range(3)]
pattern = {"match": "layer_1", "learning_rate_factor": 0.5, "weight_decay": 0.3}

def build(settings):
    variables = [keras.Variable(start, name=path) for start, path in zip(starts, paths)]
    return build_optimizer(settings, 0.1, variables), variables

differences = {}
for member in typing.get_args(typing.get_args(OptimizerSettings)[0]):
    settings = member(weight_decay=0.2, patterns=(pattern,))
    optimizer, alone = build(settings)
    for each in gradients:
        optimizer.apply([tf.constant(g) for g in each], alone)
    with strategy.scope():
        optimizer, shared = build(settings)

    @tf.function(autograph=False)
    def step(each):  # the optimizer sums what each of the two replicas gives
        strategy.run(lambda: optimizer.apply([g / 2 for g in each], shared))

    for each in gradients:
        step([tf.constant(g) for g in each])
    assert int(optimizer.iterations.numpy()) == 3
    moved = max(float(np.abs(a - start).max()) for a, start in zip(alone, starts))
    assert moved > 0.01, settings.name
    differences[settings.name] = max(float(np.abs(a.numpy() - b.numpy()).max()) for a, b in zip(alone, shared))
print(json.dumps(differences))
"""


def test_on_two_replicas_it_is_the_same_step():
    done = subprocess.run([sys.executable, "-c", ON_REPLICAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert set(differences) == set(BY_NAME)
    assert {name: difference for name, difference in differences.items() if difference > 2e-6} == {}


def test_adafactor_leaves_what_has_no_gradient_finite():
    """A pixel that is always black has none; Keras's own default makes its weights NaN."""
    (found,) = stepped(BY_NAME["adafactor"](), {"kernel": np.ones((3, 2))}, [[np.zeros((3, 2))]] * 4)
    assert np.isfinite(found).all()
