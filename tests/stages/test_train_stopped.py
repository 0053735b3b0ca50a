"""A run that was stopped goes on to the same bits, whatever it carries along."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

TIMELINE = """\
  average_decay: 0.9
  lookahead_every_steps: 3
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


def gates_of(run_dir, step):
    weights = np.load(run_dir / "checkpoints" / f"step_{step:08d}" / "weights.npz")
    return {float(value) for name, value in weights.items() if name.endswith("normalization/gate")}


def test_a_stopped_run_ends_as_one_that_was_never_stopped(train, tmp_path, recipe, arrays_of):
    """Stopped in mid-epoch by Ctrl-C, and once more killed without warning: the bits are those of a straight run.

    With all that a run carries along: ticks of every kind, accumulation, augmentation, and an average of the weights
    that these return to.
    """
    recipe.write_text(recipe.read_text() + TIMELINE)
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

    (stopped / ".lock").unlink()
    (stopped / ".lock").mkdir()  # no lock can be had, as where nothing can be written
    again = train(stopped)
    assert again.returncode == 0, again.stderr
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
