"""What a run does when a step goes wrong: it stops, leaves the step out, or goes back; and what it writes down."""

import json
import shutil

import numpy as np
import pytest


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
def test_steps_are_left_out_and_a_resumed_run_leaves_out_the_same(run_python, recipe, tmp_path, arrays_of):
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
    assert_same_bits(arrays_of(tmp_path / "stopped", 14), arrays_of(tmp_path / "straight", 14))
    assert arrays_of(tmp_path / "stopped", 14)["state/steps_seen"] == 3


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.slow
def test_a_run_goes_back_and_on_more_slowly(run_python, recipe, tmp_path, arrays_of):
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
    assert_same_bits(arrays_of(again, 10), arrays_of(tmp_path / "run", 10))


@pytest.mark.slow
def test_a_run_that_cannot_be_saved_by_going_back_stops(run_python, recipe, tmp_path):
    """Before the first checkpoint it begins anew, from the weights that it began with."""
    policy = settings("training.on_failure={name: roll_back, max_times: 1}", "training.train_steps=4")
    ended = sabotaged(run_python, recipe, tmp_path / "run", "step == 2", *policy)
    assert ended.returncode == 2
    assert "step 2: loss is nan, after going back 1 times" in ended.stderr
    names = sorted(path.name for path in (tmp_path / "run" / "incidents").iterdir())
    assert names == ["step_00000002.json", "step_00000002_attempt_2.json"]
