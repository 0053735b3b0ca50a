"""A picture model that begins with the weights of a run: what it takes over, and what it refuses."""

import pytest

RECIPE = """\
task: classify_image
data: {source: built_in, name: digits, train: 200, validation: 40, test: 40}
picture: {height: 8, width: 8, channels: 1, mean: [0.3]}
batching: {global_batch_size: 32}
model: {name: resnet, blocks: [1], filters: [16]}
training: {train_steps: 3, schedule: {name: constant}, best_metric: accuracy}
"""

SCRIPT = """
import sys
from kerasllm.environment import load_tensorflow
load_tensorflow()
import numpy as np
from kerasllm.data.preparation import prepare_data
from kerasllm.errors import UserError
from kerasllm.runs.pretrained import complete_recipe, load_pretrained
from kerasllm.recipe import load_recipe
from kerasllm.stages.train import train
from kerasllm.runs.trained_run import build_model, build_task, load_run

train(load_recipe("base.yaml"), "base")
trained = load_run("base").model
pictures = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("float32")

def begun(*overrides):
    recipe = complete_recipe(load_recipe("more.yaml", overrides), None)
    task = build_task(recipe, prepare_data(recipe).directory)
    build_model(task, recipe)
    load_pretrained(recipe, task, None)
    return recipe, task.model

recipe, model = begun()
assert (recipe.model.blocks, recipe.picture.mean) == ((1,), (0.3,)), recipe.dump()
np.testing.assert_array_equal(model(pictures), trained(pictures))

names = ", ".join(f"{digit}: {'odd' if digit % 2 else 'even'}" for digit in range(10))
_, other = begun(f"classification.names={{{names}}}")
np.testing.assert_array_equal(other.embed(pictures), trained.embed(pictures))
assert other(pictures).shape == (3, 2)

for override, message in [
    ("model.order=pre", "model.order: is pre, and what it begins with has post; leave it out"),
    ("model.name=conv_net", "has trained a resnet, and the recipe has a conv_net"),
    ("model.pretrained=nowhere", "model.pretrained: nowhere"),
    ("picture.height=16", "picture.height: is 16, and what it begins with has 8; leave it out"),
]:
    try:
        begun(override)
    except UserError as error:
        assert message in str(error), error
    else:
        raise AssertionError(override)

report = train(load_recipe("more.yaml"), "more")
assert report["steps"] == 2
"""


@pytest.mark.slow
def test_a_run_gives_its_numbers_and_weights_and_its_head_where_the_labels_are_the_same(run_python, tmp_path):
    (tmp_path / "base.yaml").write_text(RECIPE)
    more = RECIPE.replace("blocks: [1], filters: [16]", "pretrained: base").replace("train_steps: 3", "train_steps: 2")
    more = more.replace("picture: {height: 8, width: 8, channels: 1, mean: [0.3]}\n", "")
    more += 'ticks: [{at_step: 0, freeze: "^(?!head)"}, {at_step: 1, unfreeze: "stage_0_block_0/.*"}]\n'
    (tmp_path / "more.yaml").write_text(more)
    done = run_python("-c", SCRIPT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
