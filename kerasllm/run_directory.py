"""The names inside a run directory, and writes that are either complete or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kerasllm.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
"""Names of what is not written, or not removed, to its end."""


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_directory(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of the names and contents of all files in a directory and below."""
    files = {str(file.relative_to(path)): sha256_of_file(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf-8")).hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears complete or not at all; an existing one is replaced.

    Raises:
        UserError: it cannot be written (disk full, no permission); the file that was there before stays.
    """
    path = Path(path)
    with naming_the_target(path, needed=len(content)):
        temporary = _temporary_beside(path)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _synchronize(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_directory(path: Path, needed: int | None = None, replace: bool = False) -> Iterator[Path]:
    """Yields a hidden empty directory beside `path`, which becomes `path` when the block ends without an error.

    Args:
        needed: bytes that the block writes; the error of a full disk names them.
        replace: what is at `path` gives way to it at the end. A process that is killed in between leaves neither of
            them at `path`, but never a part of one.

    Raises:
        UserError: `path` exists, or it cannot be written (disk full, no permission). The hidden directory is then
            removed, and whatever is at `path` is as it was.
    """
    path = Path(path)
    if not replace:
        _refuse_existing(path)
    temporary = _temporary_beside(path)
    try:
        with naming_the_target(path, needed=needed):
            temporary.mkdir(parents=True)
        with naming_the_target(path, inside=temporary, needed=needed):
            yield temporary
        with naming_the_target(path, needed=needed):
            for file in [*temporary.rglob("*"), temporary]:
                _synchronize(file)
            if replace:
                remove_directory(path)
            _refuse_existing(path)
            os.rename(temporary, path)
            _synchronize(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_directory(path: Path) -> None:
    """Removes a directory, if it is there, so that a killed process leaves all of it or nothing under its name."""
    if path.exists():
        with naming_the_target(path):
            temporary = _temporary_beside(path)
            os.rename(path, temporary)
            shutil.rmtree(temporary)


def remove_leftovers(directory: Path) -> None:
    """Removes what killed processes were writing or removing in a directory and below; nobody may be writing there."""
    for path in [path for path in directory.rglob(".*.tmp") if LEFTOVER.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class RunDirectory:
    """A run on disk: `recipe.yaml manifest.json tokenizer/ checkpoints/ logs/ metrics.jsonl predictions/`, and
    `incidents/` where a step went wrong.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.manifest_path = self.path / "manifest.json"
        self.tokenizer_path = self.path / "tokenizer"
        self.labels_path = self.path / "labels.json"
        self.checkpoints_path = self.path / "checkpoints"
        self.logs_path = self.path / "logs"
        self.metrics_path = self.path / "metrics.jsonl"
        self.predictions_path = self.path / "predictions"
        self.incidents_path = self.path / "incidents"

    def exists(self) -> bool:
        """Tells whether a run was begun here: its recipe is written first."""
        return self.recipe_path.is_file()

    def create(self) -> None:
        """Makes the directory and those inside that are written to piece by piece.

        Raises:
            UserError: it cannot be made, or something else is in its place.
        """
        for directory in (self.path, self.checkpoints_path, self.logs_path, self.predictions_path):
            with naming_the_target(directory):
                directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process can hold the directory while the block runs; what a killed one held is free again.

        Raises:
            UserError: another process holds it, or it cannot be made.
        """
        with naming_the_target(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path}: another process trains here; stop it, or name another place") from error
            yield
        finally:
            os.close(descriptor)

    def write_incident(self, step: int, attempt: int, found: dict[str, object]) -> Path:
        """Writes down what is known of a step that went wrong; of a later attempt at the step beside the first one.

        Returns:
            The file.
        """
        suffix = f"_attempt_{attempt}" if attempt > 1 else ""
        path = self.incidents_path / f"step_{step:08d}{suffix}.json"
        with naming_the_target(self.incidents_path):
            self.incidents_path.mkdir(exist_ok=True)
        atomic_write_text(path, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        return path

    def read_manifest(self) -> dict[str, Any]:
        """The run's manifest, empty before there is one."""
        return json.loads(self.manifest_path.read_text("utf-8")) if self.manifest_path.exists() else {}

    def write_manifest(self, **entries: Any) -> None:
        """Adds entries to the run's manifest."""
        atomic_write_text(self.manifest_path, json.dumps({**self.read_manifest(), **entries}, indent=2) + "\n")

    def fingerprints(self) -> dict[str, str | None]:
        """What the weights of the run depend on: hashes of its recipe, its tokenizer, its labels and its prepared
        data; None for what it has not."""
        return {
            "recipe": sha256_of_file(self.recipe_path) if self.recipe_path.is_file() else None,
            "tokenizer": sha256_of_directory(self.tokenizer_path) if self.tokenizer_path.is_dir() else None,
            "labels": sha256_of_file(self.labels_path) if self.labels_path.is_file() else None,
            "data": self.read_manifest().get("prepared"),
        }

    def append_metrics(self, metrics: dict[str, object]) -> None:
        """Adds one line to `metrics.jsonl`, in place of a line that a killed process left unfinished."""
        line = json.dumps(metrics, ensure_ascii=False).encode("utf-8") + b"\n"
        with naming_the_target(self.metrics_path, needed=len(line)), open(self.metrics_path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, object]]:
        """Returns the lines of `metrics.jsonl`, oldest first, without an unfinished last one."""
        return [json.loads(line) for line in self._metrics_lines()]

    def cut_metrics(self, step: int) -> None:
        """Drops the lines of `metrics.jsonl` that come after `step` steps; a run that goes on writes them again."""
        lines = self._metrics_lines()
        kept = b"".join(line for line in lines if json.loads(line)["step"] <= step)
        if self.metrics_path.exists() and self.metrics_path.read_bytes() != kept:
            atomic_write_bytes(self.metrics_path, kept)

    def _metrics_lines(self) -> list[bytes]:
        content = self.metrics_path.read_bytes() if self.metrics_path.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _temporary_beside(path: Path) -> Path:
    """Returns a hidden name that nobody else uses, on the same file system as `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path}: exists already; name another place, or remove it")


def _synchronize(path: Path) -> None:
    """Asks the system to put a file's content, or the names in a directory, on the disk: after a power cut no rename
    has then published an empty file, and none is forgotten."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming_the_target(path: Path, inside: Path | None = None, needed: int | None = None) -> Iterator[None]:
    """Turns a failed write into a `UserError` that names what was being written.

    Args:
        path: the target.
        inside: the block is the caller's: only a full disk and errors about files in that directory are turned.
        needed: bytes that the block writes.
    """
    free = shutil.disk_usage(_existing(path)).free
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if full := full_disk_in(error):
            room = f"{_megabytes(needed)} needed, " if needed is not None else ""
            room += f"{_megabytes(free)} were free"
            raise UserError(f"{path}: cannot be written: {full} ({room}); free some space and run again") from error
        if isinstance(error, OSError) and (inside is None or str(error.filename).startswith(str(inside))):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def full_disk_in(error: BaseException | None) -> str | None:
    """The system's words for a full disk if an error, or one that it came from, says so.

    Libraries report a full disk with exceptions of their own, so the words are looked for as well as the number.
    """
    while error is not None:
        for number in DISK_FULL:
            if getattr(error, "errno", None) == number or os.strerror(number).lower() in str(error).lower():
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def _existing(path: Path) -> Path:
    return next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
