"""Seconds from the start of a process to its first finished step: a run that begins, and one late in an epoch.

    python tools/bench/resume.py [ROUNDS]

Multi30k's recipe on as much random text, made on the spot and prepared before. The run that goes on has a checkpoint
shortly before the end of its last epoch but one. Both in turn, each in a process of its own; nothing else should run.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_pairs import OVERRIDES, RECIPE, write_pairs

STEPS_BEFORE_THE_END = 3


def save_late(folder: Path) -> None:
    """Makes a run whose checkpoint says that it is late in an epoch."""
    from kerasllm.data.preparation import prepare_data
    from kerasllm.environment import build_strategy
    from kerasllm.recipe import load_recipe
    from kerasllm.run_directory import RunDirectory
    from kerasllm.runs.training_run import build_run
    from kerasllm.stages.train import begin_run
    from kerasllm.training.checkpoints import read_variables

    recipe = load_recipe(RECIPE, OVERRIDES)
    prepared = prepare_data(recipe, folder)
    run = build_run(RunDirectory(folder / "late"), recipe, prepared, build_strategy(1))
    begin_run(run.directory, recipe, prepared)
    step = run.plan.epoch_starts[-2] - STEPS_BEFORE_THE_END
    run.trainer.optimizer.iterations.assign(step)
    weights, state = read_variables(run.trainer.model.weights), read_variables(run.trainer.state_variables)
    run.checkpoints.save(step, weights, state, {})


def train_one_step(folder: Path, run_dir: Path) -> None:
    """Calls `train`, and ends the process after its first step; prints when both were, in seconds since 1970."""
    from kerasllm.environment import load_tensorflow
    from kerasllm.recipe import load_recipe

    load_tensorflow()
    from kerasllm.stages.train import train

    recipe, called = load_recipe(RECIPE, OVERRIDES), time.time()

    def end(task) -> None:
        print(json.dumps({"called": called, "finished": time.time()}), flush=True)
        os._exit(0)

    recipe.task_class.step_figures = end
    train(recipe, run_dir, folder)


def main(rounds: int) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KERASLLM_CACHE"] = str(folder / "cache")
        write_pairs(folder, count=29_000)
        command = [sys.executable, __file__, "--in", name]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        seconds = {"first start": [], "late in an epoch": []}
        for _ in range(rounds):
            for kind, found in seconds.items():
                run_dir = folder / "run"
                if kind != "first start":
                    shutil.copytree(folder / "late", run_dir)
                started = time.time()
                done = subprocess.run([*command, str(run_dir)], check=True, capture_output=True, text=True)
                times = json.loads(done.stdout.splitlines()[-1])
                found.append((times["finished"] - started, times["finished"] - times["called"]))
                shutil.rmtree(run_dir)
    print("| seconds to the first step | of the process | of `train` |\n|---|---|---|")
    medians = {kind: [statistics.median(each) for each in zip(*found, strict=True)] for kind, found in seconds.items()}
    for kind, (process, call) in medians.items():
        print(f"| {kind} | {process:.2f} | {call:.2f} |")
    first, late = medians.values()
    print(f"| ratio | {late[0] / first[0]:.3f} | {late[1] / first[1]:.3f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        from kerasllm.environment import configure

        configure()
        folders = [Path(name) for name in sys.argv[2:]]
        save_late(*folders) if len(folders) == 1 else train_one_step(*folders)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
