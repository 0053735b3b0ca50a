"""What the engine itself costs: a run with logs of every step and a checkpoint every 100, against bare compiled steps.

    python tools/bench/engine.py [STEPS]

The same model, batches and optimizer in both, in turn (A B A B); evaluations are left out. Nothing else should run.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
OVERRIDES = [
    "data={source: built_in, name: dates, train: 20000, validation: 20, test: 20}",
    "batching.tokens_per_batch=4096",
    "model.hidden_dim=256",
    "model.intermediate_dim=1024",
    "training.train_epochs=null",
    "training.checkpoint_every_steps=100",
    "training.evaluate_every_steps=null",
]


def main(steps: int) -> None:
    """Prints the seconds of each round, and the median of the ratios."""
    from kerasllm.environment import build_strategy, configure

    configure()
    from kerasllm.data.preparation import prepare_data
    from kerasllm.recipe import load_recipe
    from kerasllm.run_directory import RunDirectory
    from kerasllm.stages.train import begin_run, build_run, fit

    recipe = load_recipe("translate/dates_tiny", [*OVERRIDES, f"training.train_steps={steps}"])
    strategy = build_strategy(1)
    prepared = prepare_data(recipe, recipe.task_class.encode, None)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / "run")
        run = build_run(directory, recipe, prepared, strategy)
        run.evaluator = lambda description: ({"loss": 0.0, "exact_match": 0.0}, [])
        begin_run(directory, recipe, prepared)

        def bare() -> None:
            run.stream.seek(0, 0, first_step=0)
            batches = iter(strategy.distribute_datasets_from_function(lambda context: run.stream.dataset()))
            for _ in range(steps):
                run.trainer.train_function(batches)

        def engine() -> None:
            fit(run, {"step": 0})

        def seconds(work) -> float:
            run.trainer.optimizer.iterations.assign(0)
            shutil.rmtree(directory.checkpoints_path)
            directory.checkpoints_path.mkdir()
            started = time.perf_counter()
            work()
            return time.perf_counter() - started

        run.trainer.make_train_function()
        seconds(bare)
        rounds = [(seconds(bare), seconds(engine)) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / theirs for theirs, ours in rounds)
    for theirs, ours in rounds:
        print(f"bare {theirs:.2f} s, engine {ours:.2f} s for {steps} steps")
    print(f"engine / bare: {ratio:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
