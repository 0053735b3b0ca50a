"""Processes that are stopped in every way, over and over, end with the bits of one that was never stopped."""

import errno
import json
import random
import re
import signal

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECIPE = """\
task: translate
seed: 1
data: {source: built_in, name: dates, train: 300, validation: 10, test: 10}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 48}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 48, dropout: 0.2}
generation: {beam_size: 1, max_length_ratio: 0.1}
training:
  train_steps: 60
  schedule: {name: cosine, warmup_steps: 2}
  evaluate_every_steps: 15
  checkpoint_every_steps: 3
  best_metric: loss
  average_checkpoints: 2
  average_decay: 0.9
ticks:
  - {at_step: 48, freeze: "embedding/.*", learning_rate_factor: 0.5}
  - {when_plateau: {metric: validation_exact_match, patience_evaluations: 1}, learning_rate_factor: 0.1}
"""

DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from kerasllm.environment import configure
configure()
import kerasllm.cli, kerasllm.stages.train

def arm(stop, run_dir):
    left = stop["operation"]
    def hook(event, arguments):
        nonlocal left
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = str(arguments[0])
        if path.startswith(run_dir) and stop.get("path", "") in path or event in ("os.remove", "os.rmdir"):
            left -= "/logs/" not in path
            if left < 0:
                if "error" in stop:
                    raise OSError(stop["error"], os.strerror(stop["error"]))
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def names(run_dir):
    return {path.name for path in Path(run_dir, "checkpoints").glob("step_*")}

for run_dir, stop in json.loads(sys.argv[2]):
    before = names(run_dir)
    child = os.fork()  # which saves each of them the seconds that the imports take; nothing of TensorFlow has run yet
    if child == 0:
        if "operation" in stop:
            arm(stop, run_dir)
        code = kerasllm.cli.main(["train", sys.argv[1], "--run-dir", run_dir])
        sys.stderr.flush()
        os._exit(code)
    if "signal" in stop:
        while not names(run_dir) - before:
            time.sleep(0.001)
        time.sleep(stop["seconds"])
        os.kill(child, stop["signal"])
    status = os.waitpid(child, 0)[1]
    sys.stderr.flush()
    print(json.dumps([os.waitstatus_to_exitcode(status), len(names(run_dir) - before)]), flush=True)
"""


def end_of(run_dir):
    """All that has to be the same in the end, to the bit."""
    last = run_dir / "checkpoints" / "step_00000060"
    files = [last / "weights.npz", last / "state.npz", run_dir / "checkpoints" / "chosen" / "weights.npz"]
    found = {f"{file.parent.name}/{file.stem}/{name}": a for file in files for name, a in np.load(file).items()}
    progress = json.loads((last / "progress.json").read_text())
    finished = json.loads((run_dir / "manifest.json").read_text())["finished"]
    for figures in (progress, finished):
        del figures["seconds"]
    return found, {"progress": progress, "finished": finished, "metrics": (run_dir / "metrics.jsonl").read_bytes()}


def logged(run_dir, tag):
    """What TensorBoard shows: the steps of a scalar, and its values."""
    accumulator = EventAccumulator(str(run_dir / "logs"), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    if tag in accumulator.Tags()["scalars"]:
        return [(event.step, event.value) for event in accumulator.Scalars(tag)]
    return [(event.step, event.tensor_proto.float_val[:]) for event in accumulator.Tensors(tag)]


def assert_same(ours, theirs):
    (arrays, figures), (expected_arrays, expected_figures) = end_of(ours), end_of(theirs)
    assert figures == expected_figures
    assert arrays.keys() == expected_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name], err_msg=name)
    for tag in ("train/loss", "train/learning_rate", "validation/loss"):
        assert logged(ours, tag) == logged(theirs, tag), tag
    assert [step for step, _ in logged(ours, "train/loss")] == list(range(1, 61))
    assert not list(ours.rglob("*.tmp"))


@pytest.mark.slow
def test_stopped_at_any_moment(run_python, tmp_path):
    """Killed before operations that are drawn and at a moment that is drawn, by a full disk, by SIGTERM, at the end."""
    draw, stopped, straight = random.Random(1), tmp_path / "stopped", tmp_path / "straight"
    stops = {
        "at the beginning": ({"operation": draw.randrange(8)}, -9),
        "anywhere": ({"operation": draw.randrange(30, 90)}, -9),
        "saving what is evaluated": ({"operation": draw.randrange(1, 8), "path": "step_00000015"}, -9),
        "disk full": ({"operation": 2, "path": "state.npz", "error": errno.ENOSPC}, 2),
        "at any moment": ({"signal": signal.SIGKILL, "seconds": draw.uniform(0.0, 0.2)}, -9),
        "asked to stop": ({"signal": signal.SIGTERM, "seconds": 0.0}, 130),
        "choosing": ({"operation": draw.randrange(1, 4), "path": "chosen"}, -9),
        "not at all": ({}, 0),
    }
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    starts = [(str(stopped), stop) for stop, _ in stops.values()] + [(str(straight), {})]
    done = run_python("-c", DRIVER, str(tmp_path / "recipe.yaml"), json.dumps(starts))
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in ends] == [*(code for _, code in stops.values()), 0], done.stderr
    assert sum(saved > 0 for _, saved in ends) > 5, "they are stopped at different places"
    assert "which is saved; the same command goes on from there" in done.stderr
    assert re.search(r"step_\d+: cannot be written: No space left on device \(0\.\d MB needed, ", done.stderr)
    assert "Traceback" not in done.stderr
    assert_same(stopped, straight)
