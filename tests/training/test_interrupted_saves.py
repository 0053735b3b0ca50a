"""A run that is killed, or meets a full disk, before any one of its file operations goes on to the same bytes.

The runs here save and evaluate as `train` does, with a few numbers in place of a model.
"""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory, remove_leftovers
from kerasllm.training.checkpoints import Checkpoints, average

STEPS = 8
CREATING, REMOVING = ("open", "os.mkdir", "os.rename"), ("os.remove", "os.rmdir")
before_operation = []


def audit(event, arguments):
    if before_operation and event in (*CREATING, *REMOVING):
        reads = event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not reads:
            watcher = before_operation.pop()  # what it does itself is not watched
            try:
                watcher(event, arguments[0])
            finally:
                before_operation.append(watcher)


sys.addaudithook(audit)


@contextmanager
def watched(watcher):
    """Calls `watcher(event, path)` before each operation that changes the file system."""
    before_operation.append(watcher)
    try:
        yield
    finally:
        before_operation.clear()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def go_on(path, saved=None, size=3):
    """Runs to the end from wherever the run is; adds each step to `saved` when it is."""
    run = RunDirectory(path)
    run.create()
    checkpoints = Checkpoints(run, keep_last=2, keep_best=2)
    latest = checkpoints.latest()
    state = latest.progress if latest else {"step": 0, "best": None}
    weights = latest.load("weights")["w"] if latest else np.zeros(size, "float32")
    remove_leftovers(run.path)
    checkpoints.go_back_to(state["step"])
    run.cut_metrics(state["step"])
    for step in range(state["step"] + 1, STEPS + 1):
        weights = weights * np.float32(1.1) + np.float32(step)
        score = float(-abs(step - 4)) if step % 2 == 0 else None
        if score is not None:
            run.append_metrics({"step": step, "score": score})
            state = {"best": max(score, state["best"] or -9.0)}
        progress = {"score": score, "validation": {"loss": 0.0}, "best": state["best"]}
        checkpoints.save(step, {"w": weights}, {"m": weights + 1}, progress)
        if saved is not None:
            saved.append(step)
    checkpoints.choose(average(checkpoints.best()), {"chosen": "the mean"})
    run.write_manifest(finished={"steps": STEPS})


def content(path):
    """Every file of a run, and its bytes."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def newest(path):
    latest = Checkpoints(RunDirectory(path)).latest()
    return latest.progress["step"] if latest else 0


@pytest.fixture
def straight(tmp_path):
    """The content of a run that was never stopped."""
    go_on(tmp_path / "straight")
    found = content(tmp_path / "straight")
    steps = sorted({name.split("/")[1] for name in found if "step_" in name})
    assert steps == ["step_00000002", "step_00000004", "step_00000007", "step_00000008"]
    assert "checkpoints/step_00000004/state.npz" not in found
    return found


def test_killed_before_any_operation(tmp_path, straight):
    """Every state that the run is in on the disk is copied, as a kill would leave it, and goes on."""
    copies, saved = [], []

    def copy(event, path):
        to = tmp_path / f"copy_{len(copies)}"
        shutil.copytree(tmp_path / "run", to) if (tmp_path / "run").exists() else to.mkdir()
        copies.append((to, f"{event} {path}", len(saved)))

    with watched(copy):
        go_on(tmp_path / "run", saved)
    assert len(copies) > 80
    assert {event.split()[0] for _, event, _ in copies} == {*CREATING, *REMOVING}
    for path, operation, num_saved in copies:
        assert newest(path) >= num_saved, f"killed before {operation}"
        go_on(path)
        assert content(path) == straight, f"killed before {operation}"


class FullDisk:
    """Lets so many operations pass that take space, and none after them."""

    def __init__(self, passing):
        self.passing = passing

    def __call__(self, event, path):
        self.passing -= event in CREATING
        if event in CREATING and self.passing < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_any_operation(tmp_path, straight):
    """It ends the run with one line, leaves nothing half-written, and the run goes on when there is room again."""
    with watched(every := FullDisk(1_000)):
        go_on(tmp_path / "counted")
    num_operations = 1_000 - every.passing
    assert num_operations > 50
    line = r"cannot be written: No space left on device \(.*[\d.,]+ MB were free\); free some space and run again$"
    for passing in range(num_operations):
        path, saved = tmp_path / f"run_{passing}", []
        with pytest.raises(UserError, match=line), watched(FullDisk(passing)):
            go_on(path, saved)
        assert not list(path.rglob("*.tmp")), f"full after {passing} operations"
        assert newest(path) >= len(saved)
        go_on(path)
        assert content(path) == straight, f"full after {passing} operations"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_indeed(tmp_path, small_disk):
    """Not a stand-in: what NumPy and the system make of it."""
    go_on(tmp_path / "straight", size=60_000)
    line = r"step_00000003: cannot be written: No space left on device \(0\.5 MB needed, 0\.1 MB were free\)"
    with pytest.raises(UserError, match=line):
        go_on(small_disk / "run", size=60_000)
    assert not list(small_disk.rglob("*.tmp"))
    assert newest(small_disk / "run") == 2
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    go_on(small_disk / "run", size=60_000)
    assert content(small_disk / "run") == content(tmp_path / "straight")
