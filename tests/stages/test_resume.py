"""Processes that are stopped in every way, over and over, end with the bits of one that was never stopped."""

import errno
import json
import random
import re
import signal
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory
from kerasllm.stages import train as stage
from kerasllm.training.checkpoints import Checkpoints

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
        removes = event in ("os.remove", "os.rmdir") and "error" not in stop  # a full disk refuses no removal
        if path.startswith(run_dir) and stop.get("path", "") in path or removes:
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
    """What TensorBoard shows of a scalar or a text: the steps and the values."""
    everything = {"tensors": 0, "scalars": 0, "text": 0}
    accumulator = EventAccumulator(str(run_dir / "logs"), {"tensors": 0}, everything)
    accumulator.Reload()
    return [(event.step, tf.make_ndarray(event.tensor_proto).tolist()) for event in accumulator.Tensors(tag)]


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


def test_a_full_disk_is_not_taken_for_memory_that_is_used_up(tmp_path, monkeypatch):
    """TensorFlow, which writes the logs, reports both alike; with more micro-batches it would be tried without end."""

    def fit(run, state):
        raise tf.errors.ResourceExhaustedError(None, None, "events.out.tfevents.1.v2; No space left on device")

    monkeypatch.setattr(stage, "restore", lambda run: {"step": 0})
    monkeypatch.setattr(stage, "show_run", lambda run, prepared, step: None)
    monkeypatch.setattr(stage, "fit", fit)
    parts = {"recipe": SimpleNamespace(seed=1), "trainer": SimpleNamespace(model=None), "task": None}
    run = SimpleNamespace(directory=RunDirectory(tmp_path), stream=SimpleNamespace(micro_batches=1), **parts)
    with pytest.raises(UserError, match=r"logs: cannot be written: No space left on device \(.* free\); free some"):
        stage.fit_to_the_end(run, None, None)


def test_tensorboard_shows_steps_once(tmp_path):
    """The first process logs ten steps and is killed; the second goes on after the sixth."""
    run = RunDirectory(tmp_path)
    for start, end, value in ((0, 10, 1.0), (6, 9, 2.0)):
        time.sleep(1.0)  # the names of the files begin with the second, and TensorBoard reads them in their order
        with closing(stage.open_log(run, start)) as writer:
            for step in range(start + 1, end + 1):
                with writer.as_default(step):
                    tf.summary.scalar("train/loss", value)
                    tf.summary.text("ticks", f"{value}")
    assert [step for step, _ in logged(tmp_path, "ticks")] == list(range(1, 10))
    losses = [value for _, value in logged(tmp_path, "train/loss")]
    assert losses == [1.0] * 6 + [2.0] * 3


def test_a_tokenizer_that_is_not_that_of_the_data(tmp_path):
    """The data of the same recipe, prepared again by another version of a library, has other ids."""
    recipe = SimpleNamespace(task_class=SimpleNamespace(needs_tokenizer=True), to_yaml=lambda: "task: x\n")
    prepared = SimpleNamespace(directory=tmp_path / "0123abc", tokenizer_directory=tmp_path / "0123abc" / "tokenizer")
    prepared.tokenizer_directory.mkdir(parents=True)
    (prepared.tokenizer_directory / "tokenizer.json").write_text("{}")
    run = RunDirectory(tmp_path / "run")
    for _ in range(2):
        stage.begin_run(run, recipe, prepared)
    (prepared.directory / "tokenizer" / "tokenizer.json").write_text("{ }")
    with pytest.raises(UserError, match=r"run: its tokenizer or labels are not those of the data, .*0123abc"):
        stage.begin_run(run, recipe, prepared)
    prepared.directory = tmp_path / "4567def"
    with pytest.raises(UserError, match="its data has changed since it was begun"):
        stage.begin_run(run, recipe, prepared)


def test_the_best_is_chosen_by_the_figures_of_its_evaluation(tmp_path, monkeypatch):
    """It is not measured again; the mean of several, which nobody has measured, is."""
    checkpoints = Checkpoints(RunDirectory(tmp_path), keep_last=3, keep_best=2)
    for step, loss in ((1, 2.0), (2, 1.0)):
        progress = {"score": -loss, "validation": {"loss": loss}}
        checkpoints.save(step, {"w": np.float32([step])}, {}, progress)
    measured = []

    def evaluator(description):
        measured.append(description)
        return {"loss": 1.5}, []

    monkeypatch.setattr(stage, "write_variables", lambda variables, arrays, where: None)
    settings = SimpleNamespace(best_metric="loss")
    run = SimpleNamespace(checkpoints=checkpoints, evaluator=evaluator, recipe=SimpleNamespace(training=settings))
    run.trainer = SimpleNamespace(stored_weights=[])
    assert stage.choose(run) == {"chosen": "step 2", "validation": {"loss": 1.0}}
    assert measured == ["evaluate mean of steps 1, 2"]


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
