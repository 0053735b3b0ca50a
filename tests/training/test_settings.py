"""The section `training` of a recipe: optimizers and schedules by name, and how a mistake in them reads."""

import pytest

from kerasllm.errors import UserError
from kerasllm.settings import Settings, apply_overrides, build_settings, load_document
from kerasllm.training.optimizer_settings import AdamWSettings, MomentumSettings, MuonSettings, PatternSettings
from kerasllm.training.schedule_settings import InverseSquareRootSettings, LinearSettings
from kerasllm.training.settings import TrainingSettings


class Recipe(Settings):
    training: TrainingSettings


RECIPE = """training:
  train_steps: 100
  optimizer: %s
  schedule: {warmup_steps: 5}
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds the section from a text for `optimizer`, and overrides."""
    monkeypatch.chdir(tmp_path)

    def build(optimizer: str, *overrides: str) -> TrainingSettings:
        (tmp_path / "r.yaml").write_text(RECIPE % optimizer)
        return build_settings(Recipe, apply_overrides(load_document("r.yaml"), overrides)).training

    return build


def test_without_a_name_it_is_the_default(build):
    assert build("{weight_decay: 0.5}").optimizer == AdamWSettings(weight_decay=0.5)
    assert build("{}").optimizer == AdamWSettings(weight_decay=0.01, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
    assert build("{}").schedule == InverseSquareRootSettings(warmup_steps=5)


def test_by_name_with_its_own_arguments(build):
    training = build(
        "{name: momentum, momentum: 0.8, patterns: [{match: ^head/, learning_rate_factor: 2}]}",
        "training.schedule={name: linear, to: 0.1}",
    )
    assert training.optimizer == MomentumSettings(
        momentum=0.8, patterns=(PatternSettings(match="^head/", learning_rate_factor=2.0),)
    )
    assert training.schedule == LinearSettings(to=0.1)


NAMES = ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon", "adafactor"]
SCHEDULES = ["constant", "step", "exponential", "linear", "cosine", "inverse_square_root", "one_cycle"]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_alone_can_be_swept(build, name):
    optimizer = build("{weight_decay: 0.2}", f"training.optimizer.name={name}").optimizer
    assert (optimizer.name, optimizer.weight_decay) == (name, 0.2)


@pytest.mark.parametrize("name", [*SCHEDULES, "warmup_stable_decay"])
def test_the_name_of_a_schedule_alone_can_be_swept(build, name):
    schedule = build("{}", f"training.schedule.name={name}").schedule
    assert (schedule.name, schedule.warmup_steps) == (name, 5)


def test_weight_decay_is_the_default_of_adamw_and_muon_only(build):
    with_decay = [name for name in NAMES if build(f"{{name: {name}}}").optimizer.weight_decay]
    assert with_decay == ["adamw", "muon"]
    assert MuonSettings().weight_decay == AdamWSettings().weight_decay


OPTIMIZER = "r.yaml:3: training.optimizer"


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("{beta_3: 1}", f"{OPTIMIZER}.beta_3: unknown key; did you mean 'beta_2'? (name: adamw)"),
        (
            "{name: sgd, beta_1: 0.9}",
            f"{OPTIMIZER}.beta_1: unknown key; use one of layer_decay, name, patterns, weight_decay (name: sgd)",
        ),
        # `momentum` is here a name, and a key with a value.
        ("{name: momentum, momentum: 0.9, bta_1: 1}", f"{OPTIMIZER}.bta_1: unknown key; use one of layer_decay, mom"),
        ("{name: momentum, momentum: 1.0}", f"{OPTIMIZER}.momentum: must be less than 1.0, found 1.0"),
        ("{name: adm}", f"{OPTIMIZER}.name: unknown value \"adm\"; did you mean 'adam'?"),
        ("3", f"{OPTIMIZER}: must be a section of `key: value` lines, found 3"),
        ("{layer_decay: 1.5}", f"{OPTIMIZER}.layer_decay: must be at most 1.0, found 1.5"),
        ("{patterns: [{mach: a}]}", f"{OPTIMIZER}.patterns[0].mach: unknown key; did you mean 'match'?"),
        ("{patterns: [{learning_rate_factor: 2}]}", f"{OPTIMIZER}.patterns[0].match: is missing"),
        ("{patterns: [{match: (}]}", f"{OPTIMIZER}.patterns[0].match: '(' is not a regular expression: missing )"),
        ("{name: muon, exclude_layers: [a, (]}", f"{OPTIMIZER}.exclude_layers[1]: '(' is not a regular expression"),
    ],
)
def test_mistakes(build, optimizer, message):
    with pytest.raises(UserError) as caught:
        build(optimizer)
    assert str(caught.value).startswith(message)


def test_a_swept_name_that_does_not_fit_the_other_arguments(build):
    with pytest.raises(UserError, match=r"^r\.yaml:3: training\.optimizer\.beta_2: unknown key; .*\(name: sgd\)$"):
        build("{beta_2: 0.9}", "training.optimizer.name=sgd")
    with pytest.raises(
        UserError, match=r"^--set training\.schedule\.fact: unknown key; use one of name, to, warmup_st"
    ):
        build("{}", "training.schedule={name: linear, fact: 1}")
