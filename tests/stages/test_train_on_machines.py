"""Two processes on loopback train as one: the same weights, one that writes, and an end when a worker is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

RECIPE = """\
task: translate
seed: 1
data: {source: built_in, name: dates, train: 300, validation: 20, test: 20}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 48}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 48, dropout: 0.2}
generation: {beam_size: 1, max_length_ratio: 0.1}
training:
  train_steps: 40
  schedule: {name: cosine, warmup_steps: 2}
  clip_norm: 0.5
  evaluate_every_steps: 20
  checkpoint_every_steps: 5
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def start_two(recipe):
    """Starts both workers of a run, on free ports; ends them after the test."""
    with ExitStack() as stack:

        def start(run_dir, *arguments):
            with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
                addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
            command = [sys.executable, "-m", "kerasllm", "train", str(recipe), "--run-dir", str(run_dir), *arguments]
            workers = []
            for index in range(2):
                config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
                environment = {**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""}
                pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                workers.append(subprocess.Popen(command, env=environment, **pipes))
                stack.callback(workers[-1].kill)
            return workers

        yield start


def wait_for_a_checkpoint(run_dir, workers):
    """Until there is one more than there was."""
    before = set(run_dir.glob("checkpoints/step_*"))
    deadline = time.monotonic() + 300
    while not set(run_dir.glob("checkpoints/step_*")) - before:
        assert [worker.poll() for worker in workers] == [None, None], [worker.communicate() for worker in workers]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def arrays_of(run_dir, part):
    """All arrays of the last checkpoint, as one."""
    arrays = np.load(run_dir / "checkpoints" / "step_00000040" / f"{part}.npz")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


@pytest.mark.slow
def test_a_worker_dies_and_the_run_still_ends_with_the_weights_of_one_process(run_command, start_two, tmp_path, recipe):
    """With dropout, whose masks follow the replica; the run that went on is compared, state of the optimizer too."""
    run_dir, straight = tmp_path / "run", tmp_path / "straight"
    single = ("train", str(recipe), "--run-dir", str(straight), "--set", "training.num_replicas=2")
    done = run_command(*single, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr

    workers = start_two(run_dir)
    wait_for_a_checkpoint(run_dir, workers)
    workers[1].kill()
    message = workers[0].communicate(timeout=120)[1]
    assert workers[0].returncode == 2, message
    assert message.splitlines()[-1].startswith("error: another worker has ended or cannot be reached; look at what")

    workers = start_two(run_dir, "--json")
    (report, shown), (same_report, other_shown) = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], (shown, other_shown)
    assert json.loads(report)["steps"] == 40
    assert report == same_report
    assert "going on after" in shown
    assert other_shown.splitlines()[0].startswith("worker 1 of 2: waiting for worker 0 (127.0.0.1:")
    assert len(other_shown.splitlines()) == 2, "it leaves the rest to the chief"
    for part in ("weights", "state"):
        ours, theirs = arrays_of(run_dir, part), arrays_of(straight, part)
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
    assert len(list((run_dir / "logs").iterdir())) == 2, "the chief's of each session, none of the other worker"
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][-1] == 40
    assert len(lines) <= 3, "written by one; the evaluation of step 20 may have been done twice"


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_after_the_same_step(start_two, tmp_path):
    workers = start_two(tmp_path / "run", "--set", "training.train_steps=100000")
    wait_for_a_checkpoint(tmp_path / "run", workers)
    workers[1].send_signal(signal.SIGTERM)
    messages = [worker.communicate(timeout=120)[1].splitlines()[-1] for worker in workers]
    assert [worker.returncode for worker in workers] == [130, 130], messages
    assert messages[0] == messages[1]
    step = int(messages[0].split("stopped after step ")[1].split(", which is saved")[0].replace(",", ""))
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "state.npz").exists()
