"""The names inside a run directory, and writes that are either complete or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerasllm.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def sha256_of_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears complete or not at all; an existing one is replaced.

    Raises:
        UserError: it cannot be written (disk full, no permission); the file that was there before stays.
    """
    path = Path(path)
    with _naming_the_target(path):
        temporary = _temporary_beside(path)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a hidden empty directory beside `path`, which becomes `path` when the block ends without an error.

    Raises:
        UserError: `path` exists, or it cannot be written (disk full, no permission). The hidden directory is then
            removed, and whatever is at `path` is as it was.
    """
    path = Path(path)
    _refuse_existing(path)
    temporary = _temporary_beside(path)
    try:
        with _naming_the_target(path):
            temporary.mkdir(parents=True)
        with _naming_the_target(path, inside=temporary):
            yield temporary
        with _naming_the_target(path):
            for file in temporary.rglob("*"):
                _synchronize(file)
            _refuse_existing(path)
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
            with _naming_the_target(directory):
                directory.mkdir(parents=True, exist_ok=True)

    def write_incident(self, step: int, attempt: int, found: dict[str, object]) -> Path:
        """Writes down what is known of a step that went wrong; of a later attempt at the step beside the first one.

        Returns:
            The file.
        """
        suffix = f"_attempt_{attempt}" if attempt > 1 else ""
        path = self.incidents_path / f"step_{step:08d}{suffix}.json"
        with _naming_the_target(self.incidents_path):
            self.incidents_path.mkdir(exist_ok=True)
        atomic_write_text(path, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        return path

    def append_metrics(self, metrics: dict[str, object]) -> None:
        """Adds one line to `metrics.jsonl`, in place of a line that a killed process left unfinished."""
        line = json.dumps(metrics, ensure_ascii=False).encode("utf-8") + b"\n"
        with _naming_the_target(self.metrics_path), open(self.metrics_path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)

    def read_metrics(self) -> list[dict[str, object]]:
        """Returns the lines of `metrics.jsonl`, oldest first, without an unfinished last one."""
        if not self.metrics_path.exists():
            return []
        content = self.metrics_path.read_bytes()
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _temporary_beside(path: Path) -> Path:
    """Returns a hidden name that nobody else uses, on the same file system as `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path}: exists already; name another place, or remove it")


def _synchronize(path: Path) -> None:
    """Asks the system to put a file's content on the disk, so that no rename can publish an empty file."""
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _naming_the_target(path: Path, inside: Path | None = None) -> Iterator[None]:
    """Turns a failed write into a `UserError` that names what was being written.

    With `inside`, the block is the caller's: only a full disk and errors about files in that directory are turned.
    Libraries report a full disk with exceptions of their own, so the system's words for it are looked for as well.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if getattr(error, "errno", None) in DISK_FULL or full.lower() in str(error).lower():
            raise UserError(f"{path}: cannot be written: {full}; free some space and run again") from error
        if isinstance(error, OSError) and (inside is None or str(error.filename).startswith(str(inside))):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
