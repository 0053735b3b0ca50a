"""What several test files use: where the repository is, and commands and Python code run in a fresh process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> None:
    """Keeps prepared data of the tests, those of their subprocesses too, apart from the person's own."""
    os.environ["KERASLLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python ARGUMENTS` in a fresh process and returns its exit code and text output."""

    def run(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture
def run_command(run_python) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `kerasllm ARGUMENTS` in a fresh process."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess:
        return run_python("-m", "kerasllm", *arguments, **options)

    return run


COMMANDS = """
import json, sys
from kerasllm.environment import UNUSED_BY_COMMANDS, load_tensorflow
load_tensorflow(without=UNUSED_BY_COMMANDS)
import keras
from kerasllm.cli import main
for arguments in json.loads(sys.argv[1]):
    if code := main(arguments):
        print("in", arguments, file=sys.stderr)
        sys.exit(code)
    keras.backend.clear_session()
"""


@pytest.fixture
def run_commands(run_python) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `kerasllm` several times, each with its own arguments, in one fresh process: TensorFlow loads for seconds.

    It ends with the first command that fails, and says which.
    """

    def run(commands: Sequence[Sequence[str]], **options) -> subprocess.CompletedProcess:
        return run_python("-c", COMMANDS, json.dumps(commands), **options)

    return run
