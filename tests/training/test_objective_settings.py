"""The section `training.objective` of a recipe: what is accepted, and how a mistake reads."""

import subprocess
import sys

import pytest

from kerasllm.errors import UserError
from kerasllm.settings import Settings, apply_overrides, build_settings, load_document
from kerasllm.training.objective_settings import FgmSettings, PgdInputSettings, RDropSettings, SupervisedSettings
from kerasllm.training.settings import TrainingSettings


class Recipe(Settings):
    training: TrainingSettings


@pytest.fixture
def build(tmp_path):
    def build(objective, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"training:\n  train_steps: 9\n  objective:\n    {objective}\n")
        return build_settings(Recipe, apply_overrides(load_document(path), overrides)).training.objective

    return build


def test_the_loss_of_the_task_is_the_default():
    assert TrainingSettings(train_steps=9).objective == SupervisedSettings()


def test_one_stands_around_another(build):
    found = build("{name: fgm, epsilon: 1, around: {name: r_drop, alpha: 5.0}}")
    assert found == FgmSettings(name="fgm", epsilon=1.0, around=RDropSettings(name="r_drop", alpha=5.0))
    assert build("{name: pgd, epsilon: 1.0, step_size: 0.3}").around == SupervisedSettings()
    image = build("{name: pgd_input, input: image, epsilon: 0.03, step_size: 0.01, input_range: [-1, 1]}")
    assert isinstance(image, PgdInputSettings)
    assert image.input_range == (-1.0, 1.0)


def test_it_is_set_from_the_command_line(build):
    assert build("{name: fgm, epsilon: 1.0}", "training.objective.epsilon=0.5").epsilon == 0.5


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{name: fmg, epsilon: 1.0}", ":4: training.objective.name: unknown value \"fmg\"; .*'fgm'"),
        ("{epsilon: 1.0}", r":4: training.objective.epsilon: unknown key; use one of name \(name: supervised\)"),
        ("{name: fgm}", "training.objective.epsilon: is missing"),
        ("{name: fgm, epsilon: -1.0}", ":4: training.objective.epsilon: must be at least 0.0, found -1.0"),
        ("{name: fgm, epsilon: 1.0, steps: 3}", ":4: training.objective.steps: unknown key; "),
        ("{name: pgd, epsilon: 1.0, step_sise: 1.0}", ":4: training.objective.step_sise: .*'step_size'"),
        ("{name: pgd, epsilon: 1.0, step_size: 0.0}", "training.objective.step_size: must be greater than 0"),
        ("{name: free_lb, epsilon: 1.0, step_size: 0.1, steps: 0}", "training.objective.steps: must be at least 1"),
        (
            "{name: pgd_input, input: image, epsilon: 1.0, step_size: 0.1, input_range: [1, 0]}",
            r"training.objective: input_range \[1.0, 0.0\] is empty; give the least value",
        ),
        ("{name: fgm, epsilon: 1.0, around: r_drop}", "training.objective.around: must be a section"),
        ("{name: fgm, epsilon: 1.0, around: {name: rdrop}}", "objective.around.name: unknown value .*'r_drop'"),
        (
            "{name: fgm, epsilon: 1.0, around: {name: r_drop, alhpa: 1.0}}",
            ":4: training.objective.around.alhpa: unknown key; .*'alpha'",
        ),
        ("{name: r_drop, alpha: 1.0, around: {name: supervised}}", "training.objective.around: unknown key"),
    ],
)
def test_a_mistake_is_named(build, objective, message):
    with pytest.raises(UserError, match=message):
        build(objective)


def test_the_settings_load_no_tensorflow():
    code = "import sys, kerasllm.training.objective_settings; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
