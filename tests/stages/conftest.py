"""A small run, trained for a few seconds, that the tests of the later stages share."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RECIPE = """
task: translate
seed: 3
data: {source: built_in, name: dates, train: 400, validation: 30, test: 40}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 64}
model: {num_layers: 1, num_heads: 2, hidden_dim: 32, intermediate_dim: 64, max_sequence_length: 64}
generation: {beam_size: 2, max_length_ratio: 0.1, max_extra_tokens: 12}
training: {train_steps: 60, peak_learning_rate: 0.005, evaluate_every_steps: 60}
"""


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """The run directory; its prepared data lies in a cache of the tests' own."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERASLLM_CACHE", str(directory / "cache"))
        # In a process of its own: TensorFlow bears one distribution strategy per process.
        command = [sys.executable, "-m", "kerasllm", "train", str(directory / "recipe.yaml")]
        done = subprocess.run(
            [*command, "--run-dir", str(directory / "run")], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        yield directory / "run"


SMALLEST_RECIPE = """\
task: translate
seed: 1
data: {source: built_in, name: dates, train: 300, validation: 20, test: 20}
tokenizer: {kind: characters}
batching: {tokens_per_batch: 512, max_sequence_length: 48}
model: {num_layers: 1, num_heads: 2, hidden_dim: 16, intermediate_dim: 16, max_sequence_length: 48, dropout: 0.2}
generation: {beam_size: 1, max_length_ratio: 0.1}
training:
  train_steps: 14
  schedule: {name: cosine, warmup_steps: 2}
  evaluate_every_steps: 7
  checkpoint_every_steps: 3
  best_metric: exact_match
  average_checkpoints: 2
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(SMALLEST_RECIPE)
    return path


@pytest.fixture
def train(run_command, recipe):
    def run(run_dir, *arguments):
        return run_command("train", str(recipe), "--run-dir", str(run_dir), *arguments)

    return run


@pytest.fixture
def arrays_of():
    """arrays_of(run_dir, step): every array of a checkpoint, weights and optimizer."""

    def read(run_dir, step):
        checkpoint = run_dir / "checkpoints" / f"step_{step:08d}"
        return {
            f"{part}/{name}": array
            for part in ("weights", "state")
            for name, array in np.load(checkpoint / f"{part}.npz").items()
        }

    return read
