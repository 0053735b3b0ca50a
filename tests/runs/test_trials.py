"""The trials of a comparison: each combination once, checked before the first one starts, under a name of its own."""

import pytest

from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.runs.trials import as_text, check_trials, directory_name, plan_trials, read_over, short_names

RECIPE = """\
task: translate
seed: 7
data: {source: built_in, name: dates, train: 300}
training: {train_steps: 3, schedule: {name: cosine, warmup_steps: 2}}
"""


@pytest.fixture
def plan(tmp_path):
    """Plans the trials of RECIPE for some `--over` options."""
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)

    def plan(*over, num_seeds=1, overrides=()):
        base = load_recipe(path, overrides)
        return plan_trials(base, str(path), over, num_seeds, tmp_path / "runs", overrides)

    return plan


def test_every_combination_with_every_seed(plan):
    trials = plan("model.dropout=0,0.2", "training.schedule.name=cosine,constant", num_seeds=2)
    assert [trial.name for trial in trials[:3]] == [
        "dropout=0,schedule=cosine,seed=7",
        "dropout=0,schedule=cosine,seed=8",
        "dropout=0,schedule=constant,seed=7",
    ]
    found = [(each.recipe.model.dropout, each.recipe.training.schedule.name, each.recipe.seed) for each in trials]
    assert found == [(d, n, s) for d in (0.0, 0.2) for n in ("cosine", "constant") for s in (7, 8)]
    assert len({trial.directory.path for trial in trials}) == 8
    assert [trial.label for trial in trials[::2]] == [
        f"dropout={d}, schedule={n}" for d in (0, 0.2) for n in ("cosine", "constant")
    ]


def test_its_options_make_the_recipe_of_the_trial_again(plan, tmp_path):
    values = "training.schedule={name: cosine, warmup_steps: 1},{name: constant}"
    trials = plan(values, "training.peak_learning_rate=1e-5,2", overrides=("seed=3", "model.dropout=0.3"))
    assert len(trials) == 4
    for trial in trials:
        assert load_recipe(tmp_path / "r.yaml", trial.overrides).dump() == trial.recipe.dump()
        assert (trial.recipe.model.dropout, trial.recipe.seed) == (0.3, 3)
    assert [trial.recipe.training.peak_learning_rate for trial in trials] == [1e-5, 2.0] * 2
    assert trials[0].recipe.training.schedule.warmup_steps == 1


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["training.peak_learning_rte=1,2"], r"^--over training.peak_learning_rte: unknown key; did you mean 'peak_l"),
        (["model.dropout=0.1,2"], r"^--over model.dropout: must be less than 1.0, found 2"),
        (["training.schedule.warmup_steps=1,3"], r"warmup_steps 3 is not below train_steps 3"),
        (["model.dropout"], r"^--over model.dropout: must be section.key=value,value"),
        (["model.dropout="], r"^--over model.dropout=: names no value"),
        (["model.dropout=[0"], r"^--over model.dropout=\[0: not YAML"),
        (["model.dropout=0,0.1,0"], r"^--over model.dropout: the value 0 is given twice"),
        (["model.dropout=0", "model.dropout=0.1"], r"^--over model.dropout: is given twice"),
        (["model.dropout+model.dropout=[0, 0.1]"], r"^--over model.dropout: is given twice"),
        (["model.dropout+seed=[0, 1]"], r"^--over seed: seeds are varied by --seeds"),
        (["model.dropout+=[0, 1]"], r"must be section.key=value,value"),
        (["model.dropout+model.num_heads=0,1"], r"must be a list of 2 values for each, found 0$"),
        (["model.dropout+model.num_heads=[0, 1],[0]"], r"must be a list of 2 values for each, found \[0\]$"),
        (["model.dropout+model.num_heads=[0, 1],[0, 1]"], r"the value 0, 1 is given twice"),
        (["seed=1,2"], r"^--over seed: seeds are varied by --seeds"),
    ],
)
def test_a_wrong_key_or_value_is_refused(plan, over, message):
    with pytest.raises(UserError, match=message):
        plan(*over)


def test_a_mistake_in_set_is_not_blamed_on_over(plan):
    with pytest.raises(UserError, match=r"^--set model.dropuot: unknown key"):
        plan("model.dropout=0", overrides=["model.dropuot=1"])


def test_values_are_read_as_yaml():
    assert read_over(["a.b=1,1e-3,null,{c: 2},x"]) == [[{"a.b": each} for each in (1, 0.001, None, {"c": 2}, "x")]]


def test_keys_that_change_together(plan):
    choices = "[{name: cosine, warmup_steps: 1}, 0.1],[{name: constant}, 0.2]"
    trials = plan("model.dropout=0,0.2", f"training.schedule+training.peak_learning_rate={choices}")
    found = [(each.recipe.training.schedule.name, each.recipe.training.peak_learning_rate) for each in trials]
    assert found == [("cosine", 0.1), ("constant", 0.2)] * 2
    assert trials[3].label == "dropout=0.2, schedule=constant, peak_learning_rate=0.2"


def test_a_section_is_shown_by_its_name(plan):
    trials = plan("training.schedule={name: cosine, warmup_steps: 1},{name: constant}", "tuning.name=full,lora")
    assert [trial.label for trial in trials] == [
        f"schedule={schedule}, tuning={tuning}"
        for schedule in ("cosine(warmup_steps=1)", "constant")
        for tuning in ("full", "lora")
    ]
    assert trials[3].name == "schedule=constant,tuning=lora,seed=7"
    assert as_text({"name": "r_drop", "around": {"name": "fgm", "epsilon": 1.0}}) == "r_drop(around=fgm(epsilon=1.0))"
    assert as_text({"source": "a"}) == '{"source": "a"}'


def test_short_names_tell_keys_apart():
    keys = ["training.optimizer.name", "model.dropout", "training.seed", "data.seed"]
    assert list(short_names(keys).values()) == ["optimizer", "dropout", "training.seed", "data.seed"]


def test_directory_names_are_plain_and_differ():
    assert directory_name("dropout=0.1, rate=2") == "dropout=0.1,rate=2"
    names = [directory_name(text) for text in ("a=x/y", "a=x_y", "a=x y", "a=" + "z" * 300, "a=" + "z" * 301)]
    assert len(set(names)) == 5
    assert not any("/" in name or " " in name or len(name) > 140 for name in names)


def test_the_seed_stands_in_the_name_however_long_the_setting_is(plan):
    names = [f"training.optimizer.patterns=[{{match: '{letter * 150}', learning_rate_factor: 2}}]" for letter in "ab"]
    trials = [trial for name in names for trial in plan(name)]
    assert len({trial.name for trial in trials}) == 2
    assert all(trial.name.endswith(",seed=7") for trial in trials)


def test_a_trial_of_another_recipe_is_refused(plan):
    (trial,) = plan("model.dropout=0.1")
    check_trials([trial])
    trial.directory.create()
    trial.directory.recipe_path.write_text(trial.recipe.to_yaml())
    check_trials([trial])
    (other,) = plan("model.dropout=0.1", overrides=["training.train_steps=9"])
    with pytest.raises(UserError, match=r"made by another recipe: training.train_steps \(9, not 3\); take another"):
        check_trials([other])
