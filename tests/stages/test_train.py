"""Training as a whole: it goes on where it stopped to the same bits, refuses what does not fit, and saves on Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.recipe import load_recipe
from kerasllm.stages import train as stage
from kerasllm.training.settings import StepPlan
from kerasllm.training_run import build_scheduled_optimizer

RECIPE = """\
task: translate
seed: 1
data: {source: built_in, name: dates, train: 300, validation: 20, test: 20}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 48}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 48, dropout: 0.2}
generation: {beam_size: 1, max_length_ratio: 0.1}
training:
  train_steps: 14
  schedule: {name: cosine, warmup_steps: 2}
  evaluate_every_steps: 7
  checkpoint_every_steps: 3
  best_metric: exact_match
  average_checkpoints: 2
"""

TIMELINE = """\
  average_decay: 0.9
augmentation: [{name: token_dropout, rate: 0.2}]
ticks:
  - {at_step: 2, freeze: "embedding/.*", learning_rate_factor: 0.5, accumulate_batches: 2,
     objective: {name: r_drop, alpha: 1.0}, label_smoothing: 0.1}
  - {at_step: 4, augmentation: false}
  - {at_step: 5, open_normalization: {layers: "encoder_layer_.*/normalization", over_steps: 8}}
  - {at_share: 0.6, unfreeze: ".*", schedule: {name: constant}, dropout: 0.1,
     objective: {name: supervised}, augmentation: true}
  - {when_plateau: {metric: validation_exact_match, patience_evaluations: 1}, learning_rate_factor: 0.1}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def train(run_command, recipe):
    def run(run_dir, *arguments):
        return run_command("train", str(recipe), "--run-dir", str(run_dir), *arguments)

    return run


def arrays_of(run_dir, step):
    """Every array of a checkpoint: weights, optimizer, states of random generators."""
    checkpoint = run_dir / "checkpoints" / f"step_{step:08d}"
    return {
        f"{part}/{name}": array
        for part in ("weights", "state")
        for name, array in np.load(checkpoint / f"{part}.npz").items()
    }


def gates_of(run_dir, step):
    weights = np.load(run_dir / "checkpoints" / f"step_{step:08d}" / "weights.npz")
    return {float(value) for name, value in weights.items() if name.endswith("normalization/gate")}


def test_a_stopped_run_ends_as_one_that_was_never_stopped(train, tmp_path, recipe):
    """Stopped in mid-epoch by Ctrl-C, and once more killed without warning: the bits are those of a straight run.

    With all that a run carries along: ticks of every kind, accumulation, augmentation, and an average of the weights.
    """
    recipe.write_text(RECIPE + TIMELINE)
    straight = train(tmp_path / "straight", "--json")
    assert straight.returncode == 0, straight.stderr
    report = json.loads(straight.stdout)
    assert report["steps"] == 14
    assert "mean of steps 7, 14" in straight.stderr
    frozen = (
        "freeze embedding/.*, learning_rate_factor 0.5, objective r_drop, label_smoothing 0.1, accumulate_batches 2"
    )
    assert f"step 2: tick: {frozen};" in straight.stderr
    assert "step 4: tick: augmentation off;" in straight.stderr
    gates = {step: gates_of(tmp_path / "straight", step) for step in (7, 14)}
    assert gates == {7: {0.25}, 14: {1.0}}, "of the step, although the other weights are averaged"

    stopped = tmp_path / "stopped"
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        interrupt_after_a_checkpoint(recipe, stopped, number, code)
    rest = train(stopped, "--json")
    assert rest.returncode == 0, rest.stderr
    assert "going on after" in rest.stderr
    assert json.loads(rest.stdout)["chosen"] == report["chosen"]
    ours, theirs = arrays_of(stopped, 14), arrays_of(tmp_path / "straight", 14)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)

    again = train(stopped)
    assert again.returncode == 0
    assert "is trained already" in again.stderr


def interrupt_after_a_checkpoint(recipe, run_dir, number, code):
    """Starts the run, lets it write one more checkpoint, and sends it a signal."""
    checkpoints = run_dir / "checkpoints"
    before = set(checkpoints.glob("step_*"))
    command = [sys.executable, "-m", "kerasllm", "train", str(recipe), "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 400
    while not set(checkpoints.glob("step_*")) - before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    message = process.communicate(timeout=60)[1]
    assert process.returncode in (code, 0), message
    if process.returncode == 130:
        assert "which is saved; the same command goes on from there" in message


def test_a_run_of_another_recipe_is_refused(train, tmp_path, recipe):
    assert train(tmp_path / "run", "--set", "training.train_steps=3").returncode == 0
    before = sorted((tmp_path / "run").rglob("*"))
    refused = train(tmp_path / "run", "--set", "training.train_steps=3", "--set", "model.dropout=0.3")
    assert refused.returncode == 2
    assert "was made by another recipe: model.dropout (0.3, not 0.2)" in refused.stderr
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_nothing_is_written_before_the_data_is_known_to_be_good(train, tmp_path):
    files = "{source: a.txt, target: b.txt}"
    data = f"data={{source: parallel_text, train: {files}, validation: {files}}}"
    refused = train(tmp_path / "run", "--set", data)
    assert refused.returncode == 2
    assert "a.txt: no such file" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_validation_split_nothing_could_be_chosen(train, tmp_path):
    refused = train(tmp_path / "run", "--set", "data={source: built_in, name: dates, train: 30}")
    assert refused.returncode == 2
    assert "data.validation: is missing" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_warm_up_longer_than_the_epochs(train, tmp_path):
    changes = ["training.train_steps=null", "training.train_epochs=1", "training.schedule.warmup_steps=5000"]
    refused = train(tmp_path / "run", *(part for change in changes for part in ("--set", change)))
    assert refused.returncode == 2
    assert "training.schedule.warmup_steps: 5000 is not below the" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_pattern_without_a_variable_is_named_by_recipe_and_key(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.yaml", ["training.optimizer={patterns: [{match: encoder_layr}]}"])
    variables = [keras.Variable([1.0], name="encoder_layer_0")]
    message = r"--set training\.optimizer\.patterns\[0\]\.match: 'encoder_layr' matches no variable; .*encoder_layer_0$"
    with pytest.raises(UserError, match=message):
        build_scheduled_optimizer(recipe, [], StepPlan((0, 9), frozenset([9]), 9), variables)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_batch_behind(train, tmp_path):
    diverging = ["training.peak_learning_rate=1.0e+30", "training.schedule={name: constant}"]
    ended = train(tmp_path / "run", *(part for change in diverging for part in ("--set", change)))
    assert ended.returncode == 2
    assert "loss is nan" in ended.stderr
    file = tmp_path / "run" / "incidents" / "step_00000002.json"
    assert f"{file} holds the batch" in ended.stderr
    found = json.loads(file.read_text())
    assert (found["step"], found["epoch"], found["policy"], found["last_checkpoint"]) == (2, 0, "stop", None)
    assert found["figures"]["loss"] == "nan"
    assert found["weights"] == [], "the step was not applied"
    assert found["first_layer"]["inputs_are_finite"]
    assert found["first_layer"]["largest_finite_input"] > 1e18, "its square is more than a float32 holds"
    assert f"first not finite: {found['first_layer']['layer']}" in ended.stderr
    assert "nan" in found["gradient_norms"].values()
    record = found["examples"][0]
    assert len(record["decoder_token_ids"]) == len(record["target"]) + 2
    assert record["decoded"] == {"encoder_token_ids": record["source"], "decoder_token_ids": record["target"]}
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*")), "nothing of it is saved"


# Makes the loss of some steps no number, whatever the weights.
SABOTAGE = """
import os, sys
import tensorflow as tf
from kerasllm.training.callbacks import StepLog
from kerasllm.training.trainer import Trainer

def crash(self, step, logs, on_step=StepLog.on_step):
    if step == CRASH_STEP:
        os._exit(99)
    on_step(self, step, logs)

StepLog.on_step = crash

gradient_of = Trainer.gradient_of

def sabotaged(self, batches):
    totals, gradients = gradient_of(self, batches)
    step = self.optimizer.iterations.value + 1
    bad = BAD_STEPS
    return [tf.where(bad, float("nan"), totals[0]), *totals[1:]], gradients

Trainer.gradient_of = sabotaged
from kerasllm.cli import main
sys.exit(main())
"""
SKIPPING = "tf.reduce_any(step == [5, 9])"
ROLLING_BACK = "(step == 8) & (self.optimizer.learning_rate > 6e-4)"


def sabotaged(run_python, recipe, run_dir, bad_steps, *arguments, crash_step=0):
    program = SABOTAGE.replace("BAD_STEPS", bad_steps).replace("CRASH_STEP", str(crash_step))
    return run_python("-c", program, "train", str(recipe), "--run-dir", str(run_dir), *arguments)


def settings(*changes):
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.slow
def test_steps_are_left_out_and_a_resumed_run_leaves_out_the_same(run_python, recipe, tmp_path):
    """The second run ends between the incidents, and goes on from a checkpoint after the first one."""
    policy = settings("training.on_failure={name: skip, spike_factor: 50, spike_window_steps: 3}")
    straight = sabotaged(run_python, recipe, tmp_path / "straight", SKIPPING, *policy)
    assert straight.returncode == 0, straight.stderr
    assert "step 5: failure: loss is nan; the step is left out" in straight.stderr
    incidents = tmp_path / "straight" / "incidents"
    assert sorted(path.name for path in incidents.iterdir()) == ["step_00000005.json", "step_00000009.json"]
    found = json.loads((incidents / "step_00000009.json").read_text())
    assert (found["policy"], found["last_checkpoint"]) == ("skip", "step_00000007")

    stopped = sabotaged(run_python, recipe, tmp_path / "stopped", SKIPPING, *policy, crash_step=8)
    assert stopped.returncode == 99, stopped.stderr
    rest = sabotaged(run_python, recipe, tmp_path / "stopped", SKIPPING, *policy)
    assert rest.returncode == 0, rest.stderr
    assert "going on after 7" in rest.stderr
    assert_same_bits(tmp_path / "stopped", tmp_path / "straight", 14)
    assert arrays_of(tmp_path / "stopped", 14)["state/steps_seen"] == 3


def assert_same_bits(run_dir, other_run_dir, step):
    ours, theirs = arrays_of(run_dir, step), arrays_of(other_run_dir, step)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.slow
def test_a_run_goes_back_and_on_more_slowly(run_python, recipe, tmp_path):
    """From the checkpoint of step 7, with half the rate; what is saved then is what a resumed run goes on with."""
    policy = settings(
        "training.on_failure={name: roll_back, max_times: 1}",
        "training.schedule={name: constant}",
        "training.train_steps=10",
        "training.average_checkpoints=1",
    )
    done = sabotaged(run_python, recipe, tmp_path / "run", ROLLING_BACK, *policy)
    assert done.returncode == 0, done.stderr
    assert "step 8: failure: loss is nan; going back to the last checkpoint, with 0.5 times" in done.stderr
    assert "(1 of 1)" in done.stderr
    assert done.stderr.count("step 8: failure") == 1
    assert "going on after 7" in done.stderr
    progress = json.loads((tmp_path / "run" / "checkpoints" / "step_00000009" / "progress.json").read_text())
    assert progress["failures"] == {"in_a_row": 0, "roll_backs": 1}
    assert [path.name for path in (tmp_path / "run" / "incidents").iterdir()] == ["step_00000008.json"]

    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    for name in ("step_00000010", "chosen"):
        shutil.rmtree(again / "checkpoints" / name)
    manifest = json.loads((again / "manifest.json").read_text())
    del manifest["finished"]
    (again / "manifest.json").write_text(json.dumps(manifest))
    rest = sabotaged(run_python, recipe, again, ROLLING_BACK, *policy)
    assert rest.returncode == 0, rest.stderr
    assert "going on after 9" in rest.stderr
    assert_same_bits(again, tmp_path / "run", 10)


@pytest.mark.slow
def test_a_run_that_cannot_be_saved_by_going_back_stops(run_python, recipe, tmp_path):
    """Before the first checkpoint it begins anew, from the weights that it began with."""
    policy = settings("training.on_failure={name: roll_back, max_times: 1}", "training.train_steps=4")
    ended = sabotaged(run_python, recipe, tmp_path / "run", "step == 2", *policy)
    assert ended.returncode == 2
    assert "step 2: loss is nan, after going back 1 times" in ended.stderr
    names = sorted(path.name for path in (tmp_path / "run" / "incidents").iterdir())
    assert names == ["step_00000002.json", "step_00000002_attempt_2.json"]


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


def test_a_metric_that_the_task_has_not(train, tmp_path):
    refused = train(tmp_path / "run", "--set", "training.best_metric=exact_mach")
    assert refused.returncode == 2
    assert "training.best_metric: no metric 'exact_mach'; did you mean 'exact_match'?" in refused.stderr


def test_a_plateau_of_a_metric_that_the_task_has_not(train, tmp_path):
    refused = train(tmp_path / "run", "--set", "ticks=[{when_plateau: {metric: blue}, learning_rate_factor: 0.5}]")
    assert refused.returncode == 2
    assert "ticks[0].when_plateau.metric: no metric 'blue'; did you mean 'bleu'?" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "augmentation: [{name: shift, pixels: 1}]",
            "augmentation[0]: shift: changes image, and what this task lets be",
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
    recipe.write_text(f"{RECIPE}{line}\n")
    with pytest.raises(UserError) as caught:
        stage.train(load_recipe(recipe), tmp_path / "run")
    assert str(caught.value).startswith(f"{recipe}:15: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("accumulate_batches=12", "accumulate_batches: 12 is more than the 11 batches of an epoch; lower it"),
        ("micro_batches=70", "micro_batches: 70 on each of 1 replicas are 70 parts of a batch, which has at most"),
    ],
)
def test_a_batch_that_cannot_be_split_or_accumulated(tmp_path, recipe, change, message):
    with pytest.raises(UserError, match=rf"^--set training\.{message}"):
        stage.train(load_recipe(recipe, [f"training.{change}"]), tmp_path / "run")


def test_batches_longer_than_the_model(train, tmp_path):
    refused = train(tmp_path / "run", "--set", "model.max_sequence_length=40")
    assert refused.returncode == 2
    assert "batching.max_sequence_length: 48 is more than the 40 positions of the model" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_two_replicas_train(train, tmp_path, recipe):
    ticks = "[{at_step: 1, augmentation: false, open_normalization: {layers: encoder_norm, over_steps: 2}}]"
    recipe.write_text(f"{RECIPE}augmentation: [{{name: token_dropout, rate: 0.2}}]\nticks: {ticks}\n")
    done = train(tmp_path / "run", "--set", "training.num_replicas=2", "--set", "training.train_steps=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 3
