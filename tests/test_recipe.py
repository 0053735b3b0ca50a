"""A recipe file becomes one validated object, found by path or by name. Nothing here loads TensorFlow."""

from pathlib import Path

import pytest

from kerasllm.errors import UserError
from kerasllm.recipe import copy_recipe, list_recipes, load_recipe

RECIPE = """# Dates: many ways to one.
# Second line of the purpose.
# command: kerasllm train r.yaml
# measured: exact match 0.99,
#   on a good day
task: translate
seed: 3
data: {source: built_in, name: dates, train: 10, test: 2}
tokenizer: {kind: characters}
model: {num_layers: 2, hidden_dim: 32, num_heads: 4}
training: {train_steps: 20, schedule: {warmup_steps: 5}}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a recipe from a text, written as r.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str = RECIPE, *overrides: str):
        Path("r.yaml").write_text(text, encoding="utf-8")
        return load_recipe("r.yaml", overrides)

    return load


def test_defaults_recipe_overrides(load):
    recipe = load(RECIPE, "seed=4", "model.dropout=0")
    assert (recipe.name, recipe.path, recipe.task, recipe.seed) == ("r", Path("r.yaml"), "translate", 4)
    assert (recipe.model.hidden_dim, recipe.model.dropout) == (32, 0.0)
    assert recipe.generation.beam_size >= 1
    assert recipe.batching.tokens_per_batch > 0
    assert recipe.task_class.__name__ == "Translate"
    assert set(recipe.task_class.sections) == {"model", "generation"}


def test_written_out_and_read_again_it_is_equal(load, tmp_path):
    recipe = load()
    (tmp_path / "run").mkdir()
    copy = tmp_path / "run" / "recipe.yaml"
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(copy)
    assert again.dump() == recipe.dump()
    assert again.name == "r"
    assert recipe.differing_keys(again) == []


def test_differing_keys(load):
    mine = load()
    theirs = load(
        RECIPE, "seed=4", "model.dropout=0.5", "data={source: built_in, name: dates, train: 10}", "name=other"
    )
    assert mine.differing_keys(theirs) == ["seed (3, not 4)", "data.test (2, not None)", "model.dropout (0.1, not 0.5)"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "task: translate",
            "task: transalte",
            r"r\.yaml:6: task: unknown task 'transalte'; did you mean 'translate'\?",
        ),
        ("task: translate\n", "", r"r\.yaml: task: is missing; use one of .*translate"),
        ("seed: 3", "seed: -1", r"r\.yaml:7: seed: must be at least 0, found -1"),
        ("num_layers", "num_layer", r"r\.yaml:10: model\.num_layer: unknown key; did you mean 'num_layers'\?"),
        ("num_heads: 4", "num_heads: 5", r"r\.yaml:10: model: num_heads 5 does not divide hidden_dim 32"),
        ("model:", "modle:", r"r\.yaml:10: modle: unknown key; did you mean 'model'\?"),
        ("warmup_steps: 5", "warmup_steps: 20", r"r\.yaml:11: training: .*warmup_steps 20 is not below train_steps 20"),
        ("warmup_steps: 5", "warmup: 5", r"training\.schedule\.warmup: unknown key; did you mean 'warmup_steps'\?"),
        ("built_in", "build_in", r"r\.yaml:8: data\.source: unknown value \"build_in\"; did you mean 'built_in'\?"),
        ("train: 10, ", "", r"r\.yaml:8: data\.train: is missing"),
        ("characters", "letters", r"r\.yaml:9: tokenizer\.kind: must be 'subwords', .* or 'wordpiece', found"),
    ],
)
def test_mistakes(load, old, new, message):
    assert old in RECIPE
    with pytest.raises(UserError, match=message):
        load(RECIPE.replace(old, new, 1))


def test_recipes_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    recipes = list_recipes()
    assert recipes
    assert all(recipe.purpose for recipe in recipes)
    monkeypatch.chdir(tmp_path)
    by_name, by_path = load_recipe(recipes[0].name), load_recipe(recipes[0].path)
    assert by_name.name == by_path.name == recipes[0].name
    with pytest.raises(UserError, match=rf"did you mean '{recipes[0].name}'"):
        load_recipe(f"recipes/{recipes[0].name}.yaml")


def test_the_header_is_read(tmp_path):
    (tmp_path / "translate").mkdir()
    (tmp_path / "translate" / "dates.yaml").write_text(RECIPE, encoding="utf-8")
    (found,) = list_recipes(tmp_path)
    assert found.name == "translate/dates"
    assert found.purpose == "Dates: many ways to one. Second line of the purpose."
    assert found.header == {"command": "kerasllm train r.yaml", "measured": "exact match 0.99, on a good day"}


def test_a_copy_never_overwrites(tmp_path):
    source = list_recipes()[0]
    assert copy_recipe(source.name, tmp_path) == tmp_path / source.path.name
    assert copy_recipe(source.name, tmp_path / "mine.yaml").read_bytes() == source.path.read_bytes()
    with pytest.raises(UserError, match=r"mine\.yaml: exists already; name another file"):
        copy_recipe(source.name, tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="no recipe of that name"):
        copy_recipe("translate/none", tmp_path / "x.yaml")
