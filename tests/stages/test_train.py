"""What train refuses before it begins, and runs that are split."""

import json

import keras
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.training_run import build_scheduled_optimizer
from kerasllm.stages import train as stage
from kerasllm.training.settings import StepPlan


def test_a_run_of_another_recipe_is_refused(train, tmp_path, recipe):
    assert train(tmp_path / "run", "--set", "training.train_steps=3").returncode == 0
    before = sorted((tmp_path / "run").rglob("*"))
    refused = train(tmp_path / "run", "--set", "training.train_steps=3", "--set", "model.dropout=0.3")
    assert refused.returncode == 2
    assert "was made by another recipe: model.dropout (0.3, not 0.2)" in refused.stderr
    assert sorted((tmp_path / "run").rglob("*")) == before


FILES = "{source: a.txt, target: b.txt}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"data={{source: parallel_text, train: {FILES}, validation: {FILES}}}"], r"a\.txt: no such file"),
        (["data={source: built_in, name: dates, train: 30}"], r"data\.validation: is missing"),
        (
            ["training.train_steps=null", "training.train_epochs=1", "training.schedule.warmup_steps=5000"],
            r"training\.schedule\.warmup_steps: 5000 is not below the",
        ),
        (
            ["training.best_metric=exact_mach"],
            r"training\.best_metric: no metric 'exact_mach'; did you mean 'exact_match'\?",
        ),
        (
            ["ticks=[{when_plateau: {metric: blue}, learning_rate_factor: 0.5}]"],
            r"ticks\[0\]\.when_plateau\.metric: no metric 'blue'; did you mean 'bleu'\?",
        ),
        (
            ["model.max_sequence_length=40"],
            r"batching\.max_sequence_length: 48 is more than the 40 positions of the model",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, recipe, overrides, message):
    with pytest.raises(UserError, match=message):
        stage.train(load_recipe(recipe, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_at_a_time_trains_a_run(tmp_path, recipe):
    held = RunDirectory(tmp_path / "run").held()
    with held, pytest.raises(UserError, match="another process trains here; stop it"):
        stage.train(load_recipe(recipe), tmp_path / "run")


def test_a_pattern_without_a_variable_is_named_by_recipe_and_key(recipe):
    recipe = load_recipe(recipe, ["training.optimizer={patterns: [{match: encoder_layr}]}"])
    variables = [keras.Variable([1.0], name="encoder_layer_0")]
    message = r"--set training\.optimizer\.patterns\[0\]\.match: 'encoder_layr' matches no variable; .*encoder_layer_0$"
    with pytest.raises(UserError, match=message):
        build_scheduled_optimizer(recipe, [], StepPlan((0, 9), frozenset([9]), 9), variables)


def test_a_batch_too_large_for_memory_is_taken_in_more_micro_batches(recipe, tmp_path, monkeypatch, capfd):
    """As on a device where more than a quarter of the greatest batch does not fit."""
    tried = []

    def fit(run, state):
        tried.append(run.stream.micro_batches)
        if tried[-1] < fits:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return 1.0

    monkeypatch.setattr(stage, "fit", fit)
    monkeypatch.setattr(stage, "choose", lambda run: {"micro_batches": run.stream.micro_batches})
    loaded, fits = load_recipe(recipe), 4
    assert stage.train(loaded, tmp_path / "run")["micro_batches"] == 4
    assert tried == [1, 2, 4]
    assert "out of memory: each batch is taken in 4 micro-batches from here on" in capfd.readouterr().err
    fits = 1000
    with pytest.raises(UserError, match="out of memory with single examples"):
        stage.train(loaded, tmp_path / "other")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "augmentation: [{name: shift, pixels: 1}]",
            "augmentation[0]: shift: changes pictures, and what this task lets be",
        ),
        ("ticks: [{at_step: 1, augmentation: false}]", "ticks[0].augmentation: the recipe has no list `augmentation`"),
        (
            "ticks: [{at_step: 1, objective: {name: pgd_input, input: encoder_token_ids, epsilon: 1, step_size: 1}}]",
            "ticks[0].objective: no float input 'encoder_token_ids'; the batch has encoder_token_ids (int32)",
        ),
        (
            "ticks: [{at_step: 3, accumulate_batches: 99}]",
            "ticks[0].accumulate_batches: 99 is more than the 11 batches",
        ),
        (
            "ticks: [{at_step: 9, open_normalization: {layers: norm, over_steps: 6}}]",
            "ticks[0].open_normalization.over_steps: 6 is more than the 5 steps that are left",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line_before_anything_is_written(tmp_path, recipe, line, message):
    recipe.write_text(f"{recipe.read_text()}{line}\n")
    with pytest.raises(UserError) as caught:
        stage.train(load_recipe(recipe), tmp_path / "run")
    assert str(caught.value).startswith(f"{recipe}:15: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("accumulate_batches=12", "accumulate_batches: 12 is more than the 11 batches of an epoch; lower it"),
        ("lookahead_every_steps=5", "lookahead_every_steps: there is no average to go on from; give training.average_"),
        ("micro_batches=70", "micro_batches: 70 on each of 1 replicas are 70 parts of a batch, which has at most"),
    ],
)
def test_what_the_batches_or_the_rest_of_the_section_do_not_allow(tmp_path, recipe, change, message):
    with pytest.raises(UserError, match=rf"^--set training\.{message}"):
        stage.train(load_recipe(recipe, [f"training.{change}"]), tmp_path / "run")


def test_two_replicas_train(train, tmp_path, recipe):
    ticks = "[{at_step: 1, augmentation: false, open_normalization: {layers: encoder_norm, over_steps: 2}}]"
    changes = f"augmentation: [{{name: token_dropout, rate: 0.2}}]\nticks: {ticks}\n"
    recipe.write_text(recipe.read_text() + changes)
    done = train(tmp_path / "run", "--set", "training.cpu_replicas=2", "--set", "training.train_steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3
