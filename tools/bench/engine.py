"""What the engine costs on top of a bare train step: exact steps, input, a log of every step, a checkpoint every 100.

    python tools/bench/engine.py [STEPS]

The model and batches of Multi30k's recipe (3 + 3 layers x 256, 2,048 tokens, 8,000 words; random text, made on the
spot). Bare is a `tf.function` of a gradient tape and Keras's AdamW with clipping, on batches that are ready in memory.
Each step of the run is followed by a bare one on the same batch, so that other work on the machine, of which there
should be none, touches both alike. Evaluations are left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from random_pairs import OVERRIDES, RECIPE, write_pairs

WARM_UP, SAVE_EVERY, CHARGED_EVERY = 5, 20, 100


class Pairs:
    """Takes a bare step after each step of the engine, and the seconds of both.

    Args:
        bare: the bare step.
        batches: of each step.
        saves: seconds of each save, which count apart.
    """

    def __init__(self, bare, batches, saves):
        self.bare, self.batches, self.saves = bare, batches, saves
        self.seconds: list[tuple[float, float]] = []
        self.ended, self.num_saves, self.step = 0.0, 0, 0

    def __call__(self) -> dict[str, float]:
        """What the engine asks after each step: whether there are more figures to log."""
        engine = time.perf_counter() - self.ended - sum(self.saves[self.num_saves :])
        self.num_saves = len(self.saves)
        started = time.perf_counter()
        self.bare(self.batches[self.step]).numpy()
        self.ended = time.perf_counter()
        self.step += 1
        if self.step > WARM_UP:
            self.seconds.append((engine, self.ended - started))
        return {}


class NoEvaluation:
    """In place of the evaluation at the end."""

    answers = references = ()

    def __call__(self, description: str) -> tuple[dict[str, float], list]:
        return {"loss": 0.0, "bleu": 0.0}, []


def build_bare_step(recipe, prepared):
    """A step as one writes it by hand: batch -> loss."""
    import keras
    import tensorflow as tf

    from kerasllm.runs.trained_run import build_task

    task = build_task(recipe, prepared.directory)
    model = task.build_model()
    settings = recipe.training
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=settings.clip_norm)
    optimizer.build(model.trainable_variables)
    names = prepared.manifest["features"]

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in names}], autograph=False)
    def step(batch):
        with tf.GradientTape() as tape:
            losses, weights = task.loss(task.forward(model, batch, training=True), batch, settings.label_smoothing)
            loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def measure(folder: Path, steps: int) -> tuple[list[tuple[float, float]], list[float]]:
    """Trains; returns the seconds of each step, engine and bare, and those of each save."""
    from kerasllm.data.preparation import prepare_data
    from kerasllm.environment import build_strategy
    from kerasllm.recipe import load_recipe
    from kerasllm.run_directory import RunDirectory
    from kerasllm.runs.training_run import build_run
    from kerasllm.stages.train import begin_run, fit
    from kerasllm.training.callbacks import Saving
    from kerasllm.training.failures import NO_FAILURES

    lengths = ["training.train_epochs=null", f"training.train_steps={steps}", "training.evaluate_every_epochs=null"]
    more = [f"training.checkpoint_every_steps={SAVE_EVERY}", f"training.evaluate_every_steps={steps}"]
    recipe = load_recipe(RECIPE, [*OVERRIDES, *lengths, *more])
    strategy = build_strategy(1)
    prepared = prepare_data(recipe, folder)
    run = build_run(RunDirectory(folder / "run"), recipe, prepared, strategy)
    begin_run(run.directory, recipe, prepared)
    run.evaluator = NoEvaluation()
    saves: list[float] = []
    save = Saving.save

    def timed_save(saving, step: int) -> None:
        started = time.perf_counter()
        save(saving, step)
        saves.append(time.perf_counter() - started)

    places = [run.plan.locate(step) for step in range(steps)]
    rows = [run.stream.rows_of_step(*place, run.plan.epoch_starts[place[0]]) for place in places]
    pairs = Pairs(build_bare_step(recipe, prepared), [run.stream.parts(each)[0] for each in rows], saves)
    Saving.save, run.task.step_figures = timed_save, pairs
    fit(run, {"step": 0, "failures": NO_FAILURES})
    return pairs.seconds, saves


def main(steps: int) -> None:
    """Prints the table."""
    from kerasllm.environment import configure

    configure()
    with tempfile.TemporaryDirectory() as name:
        os.environ["KERASLLM_CACHE"] = str(Path(name) / "cache")
        write_pairs(Path(name), count=29_000)
        seconds, saves = measure(Path(name), steps)
    from kerasllm.training.settings import TrainingSettings

    default = TrainingSettings.model_fields["checkpoint_every_steps"].default
    engine, bare = (statistics.median(each) for each in zip(*seconds, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in seconds)
    save = statistics.median(saves)
    print(f"| {len(seconds)} steps, {len(saves)} saves | median |\n|---|---|")
    print(f"| bare step | {1000 * bare:.1f} ms |")
    print(f"| step of the engine | {1000 * engine:.1f} ms |")
    print(f"| engine / bare, of each pair | {ratio:.3f} |")
    print(f"| save | {save:.2f} s |")
    print(f"| engine with a save every {CHARGED_EVERY} steps / bare | {ratio + save / CHARGED_EVERY / bare:.3f} |")
    print(f"| share of saves every {default} steps, the default | {save / default / engine:.2%} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
