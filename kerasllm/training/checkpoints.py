"""Checkpoints: plain arrays with checksums, written whole or not at all, read with a fall-back to the one before.

checkpoints/step_00000500/   weights.npz  state.npz  progress.json  manifest.json
checkpoints/chosen/          weights.npz             progress.json  manifest.json     what evaluate and export use

The manifest has the checksum of each file, and the fingerprints of what the run was made with: see
`RunDirectory.fingerprints`.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasllm.errors import UserError
from kerasllm.run_directory import (
    RunDirectory,
    atomic_directory,
    atomic_write_text,
    remove_directory,
    sha256_of_file,
)
from kerasllm.terminal import say

CHOSEN = "chosen"
MANIFEST, STATE = "manifest.json", "state.npz"
Arrays = dict[str, np.ndarray]


def read_variables(variables: Sequence[keras.Variable]) -> Arrays:
    """The value of each variable under its path; those of the same path are numbered in their order."""
    return {name: np.asarray(variable.value) for name, variable in zip(_names(variables), variables, strict=True)}


def write_variables(variables: Sequence[keras.Variable], arrays: Arrays, where: str) -> None:
    """Sets every variable, after all names and shapes were found to fit.

    Raises:
        UserError: a name is missing or left over, or a shape differs; then no variable was set.
    """
    named = dict(zip(_names(variables), variables, strict=True))
    for name in [*named, *arrays]:
        ours = tuple(named[name].shape) if name in named else "nothing"
        theirs = arrays[name].shape if name in arrays else "nothing"
        if ours != theirs:
            raise UserError(f"{where}: {name}: the model has {ours}, the file has {theirs}; it is of another recipe")
    for name, variable in named.items():
        variable.assign(arrays[name])


def _names(variables: Sequence[keras.Variable]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for variable in variables:
        seen[variable.path] += 1
        names.append(variable.path if seen[variable.path] == 1 else f"{variable.path}#{seen[variable.path]}")
    return names


@dataclass(frozen=True)
class Checkpoint:
    """One directory of arrays with checksums."""

    path: Path

    @property
    def progress(self) -> dict[str, Any]:
        """What was saved beside the arrays: `step`, and whatever the run needs to go on; empty if damaged."""
        return _read_json(self.path / "progress.json")

    @property
    def rank(self) -> tuple[float, float]:
        """What checkpoints with a `score` are sorted by, the best first: its negative, and the loss."""
        progress = self.progress
        return -progress["score"], progress["validation"]["loss"]

    @property
    def manifest(self) -> dict[str, Any]:
        """`files` with their checksums, and what it was `saved_with`; empty if damaged."""
        return _read_json(self.path / MANIFEST)

    @property
    def has_state(self) -> bool:
        """Whether one can go on from it: of the best only the weights are kept."""
        return STATE in self.manifest.get("files", {})

    def is_whole(self) -> bool:
        """Whether every file is there with the content that was written."""
        files = self.manifest.get("files", {})
        try:
            return bool(files) and all(sha256_of_file(self.path / name) == files[name] for name in files)
        except OSError:
            return False

    def check(self, fingerprints: Mapping[str, str | None]) -> None:
        """Compares what it was saved with.

        Raises:
            UserError: something is another one now.
        """
        saved_with = self.manifest["saved_with"]
        for name, now in fingerprints.items():
            before = saved_with[name]
            if before != now:
                raise UserError(
                    f"{self.path}: was saved with another {name} ({_short(before)}, and the run has {_short(now)}); "
                    "put back what the run was begun with, or train in another --run-dir"
                )

    def load(self, part: str) -> Arrays:
        """The arrays of `weights` or `state`. Only plain arrays are read, never code.

        Raises:
            UserError: the file cannot be read.
        """
        file = self.path / f"{part}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: cannot be read ({error}); remove {self.path} to use an earlier one") from error


class Checkpoints:
    """The checkpoints of a run: the last few to go on from, and the weights of the best evaluations.

    Args:
        run: where they lie; its fingerprints are saved with each of them.
        keep_last: complete checkpoints that are kept, the newest.
        keep_best: checkpoints with the best score whose weights are kept.
    """

    def __init__(self, run: RunDirectory, keep_last: int = 2, keep_best: int = 1):
        self.run, self.directory = run, run.checkpoints_path
        self.keep_last, self.keep_best = keep_last, keep_best

    @cached_property
    def fingerprints(self) -> dict[str, str | None]:
        """Of the run, at the time when `latest` is first asked for."""
        return self.run.fingerprints()

    def save(self, step: int, weights: Arrays, state: Arrays, progress: dict[str, Any]) -> None:
        """Writes the checkpoint of a step, then removes those that nobody needs any more.

        Args:
            weights: what an answer depends on.
            state: what going on depends on besides: the optimizer, random generators.
            progress: JSON-able; `score` (higher is better) where the step was evaluated.

        Raises:
            UserError: it cannot be written; those that were there before stay.
        """
        parts = {"weights": weights, "state": state}
        self._write(self.directory / f"step_{step:08d}", parts, {"step": step, **progress})
        self._remove_old()

    def saved(self) -> list[Checkpoint]:
        """All that are there, oldest first."""
        return [Checkpoint(path) for path in sorted(self.directory.glob("step_[0-9]*")) if path.is_dir()]

    def latest(self) -> Checkpoint | None:
        """The newest one to go on from; a damaged one is named, and the one before is taken.

        Raises:
            UserError: it was saved with another recipe, tokenizer or data than the run has now.
        """
        fingerprints = self.fingerprints
        for checkpoint in reversed(self.saved()):
            if not checkpoint.is_whole():
                say(f"{checkpoint.path}: damaged (checksums do not match); falling back to the one before")
            elif checkpoint.has_state:
                checkpoint.check(fingerprints)
                return checkpoint
        return None

    def go_back_to(self, step: int) -> None:
        """Removes what comes after a step, as the run goes on from there and writes it again, and what a killed process
        left that nobody needs any more."""
        for checkpoint in reversed(self.saved()):
            if int(checkpoint.path.name.removeprefix("step_")) > step:
                remove_directory(checkpoint.path)
        self._remove_old()

    def named(self, name: str) -> Checkpoint:
        """The one in the directory of this name."""
        return Checkpoint(self.directory / name)

    def best(self) -> list[Checkpoint]:
        """Those with the best scores, best first, at most `keep_best`; of equal ones that of the smaller loss, or else
        the earlier: where few examples are measured, all may soon be right."""
        scored = [checkpoint for checkpoint in self.saved() if checkpoint.progress.get("score") is not None]
        return sorted(scored, key=lambda checkpoint: checkpoint.rank)[: self.keep_best]

    def choose(self, weights: Arrays, progress: dict[str, Any]) -> None:
        """Makes these the weights that `evaluate`, `predict` and `export` use."""
        self._write(self.directory / CHOSEN, {"weights": weights}, progress)

    def _write(self, target: Path, parts: dict[str, Arrays], progress: dict[str, Any]) -> None:
        needed = sum(array.nbytes for arrays in parts.values() for array in arrays.values())
        with atomic_directory(target, needed, replace=True) as directory:
            for part, arrays in parts.items():
                np.savez(directory / f"{part}.npz", **arrays)
            (directory / "progress.json").write_text(json.dumps(progress), "utf-8")
            files = {file.name: sha256_of_file(file) for file in sorted(directory.iterdir())}
            manifest = {"files": files, "saved_with": self.fingerprints}
            (directory / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")

    def _remove_old(self) -> None:
        saved, best = self.saved(), {checkpoint.path for checkpoint in self.best()}
        for checkpoint in saved[: -self.keep_last]:
            if checkpoint.path not in best:
                remove_directory(checkpoint.path)
            elif (checkpoint.path / STATE).exists():
                _keep_weights_only(checkpoint)


def average(checkpoints: Sequence[Checkpoint]) -> Arrays:
    """The mean of the weights of several checkpoints, [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), 6.1.

    The sum is in float64, so that the mean does not depend on the order.
    """
    first = checkpoints[0].load("weights")
    sums = {name: array.astype(np.float64) for name, array in first.items()}
    for checkpoint in checkpoints[1:]:
        arrays = checkpoint.load("weights")
        for name in sums:
            sums[name] += arrays[name]
    return {name: (array / len(checkpoints)).astype(first[name].dtype) for name, array in sums.items()}


def load_weights(model: keras.Model, run: RunDirectory, left_out: Sequence[keras.Variable] = ()) -> dict[str, Any]:
    """Sets the model to the weights that its training chose; before that, to the best or newest ones there are.

    Args:
        left_out: weights that the checkpoints of the run do not hold; they stay as they are.

    Returns:
        What was saved beside them.

    Raises:
        UserError: there are none, they are damaged, they are of another model, or they were saved with another recipe
            or tokenizer than the run has now.
    """
    checkpoints = Checkpoints(run)
    chosen = Checkpoint(run.checkpoints_path / CHOSEN)
    candidates = [chosen, *checkpoints.best(), *reversed(checkpoints.saved())]
    found = [checkpoint for checkpoint in candidates if checkpoint.path.exists()]
    if not found:
        raise UserError(f"{run.checkpoints_path}: holds no checkpoint yet; train first")
    for checkpoint in found:
        if checkpoint.is_whole():
            checkpoint.check({name: run.fingerprints()[name] for name in ("recipe", "tokenizer", "labels")})
            elsewhere = {id(weight) for weight in left_out}
            stored = [weight for weight in model.weights if id(weight) not in elsewhere]
            write_variables(stored, checkpoint.load("weights"), str(checkpoint.path))
            return checkpoint.progress
        say(f"{checkpoint.path}: damaged (checksums do not match); trying the next one")
    raise UserError(f"{run.checkpoints_path}: every checkpoint is damaged; train again")


def _keep_weights_only(checkpoint: Checkpoint) -> None:
    """Drops the state; the manifest is rewritten first, so that it is whole at every moment."""
    manifest = checkpoint.manifest
    manifest.get("files", {}).pop(STATE, None)
    atomic_write_text(checkpoint.path / MANIFEST, json.dumps(manifest, indent=2))
    (checkpoint.path / STATE).unlink()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "none"
