"""A trained run, ready to answer: its recipe, its task with the trained weights, and answers to many texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasllm.errors import UserError
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.terminal import progress

if TYPE_CHECKING:
    import tensorflow as tf

BATCH_SIZE = 64


@dataclass(frozen=True)
class TrainedRun:
    """What `load_run` gives."""

    directory: RunDirectory
    recipe: Recipe
    task: Any
    model: Any
    progress: dict[str, Any]
    """What was saved beside the weights: which ones were chosen, and how good they are."""


def build_task(recipe: Recipe, tokenizer_directory: Path) -> Any:
    """The task of a recipe, with its tokenizer if it needs one.

    Raises:
        UserError: the tokenizer cannot be read, or the recipe does not fit the task.
    """
    from kerasllm.data.tokenizers import load_tokenizer

    needs_tokenizer = recipe.task_class.needs_tokenizer
    return recipe.task_class(recipe, load_tokenizer(tokenizer_directory) if needs_tokenizer else None)


def build_model(task: Any, recipe: Recipe) -> Any:
    """The model of a task, with gates where the timeline of the recipe blends layers of normalization in or out."""
    from kerasllm.layers.normalization import gated_normalization
    from kerasllm.training.normalization_gates import gated_layers

    with gated_normalization(gated_layers(recipe.ticks)):
        return task.build_model()


def load_run(run_dir: Path | str, overrides: Sequence[str] = ()) -> TrainedRun:
    """Build the task and the model of a run, with the weights that its training chose.

    Args:
        run_dir: the run directory; its recipe is the one that is used.
        overrides: `section.key=value`, such as `generation.beam_size=1`.

    Raises:
        UserError: no run there, an override that is wrong, no tokenizer or checkpoint that can be read.
    """
    from kerasllm.training.checkpoints import load_weights

    directory = RunDirectory(run_dir)
    if not directory.exists():
        raise UserError(f"{run_dir}: holds no run; make one with `kerasllm train RECIPE --run-dir {run_dir}`")
    recipe = load_recipe(directory.recipe_path, overrides)
    task = build_task(recipe, directory.tokenizer_path)
    model = build_model(task, recipe)
    progress = load_weights(model, directory)
    return TrainedRun(directory, recipe, task, model, progress)


@lru_cache(maxsize=1)
def answer_function(task: Any) -> tf.types.experimental.PolymorphicFunction:
    """`task.answer` as one graph for any batch size: `text` string [B] -> `text` string [B], `score` float32 [B].

    The graph of the last task is kept: it takes seconds to trace, and training evaluates many times.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string, name="text")]
    return tf.function(task.answer, input_signature=signature, autograph=False)


def answer_texts(task: Any, texts: Sequence[str], description: str) -> list[dict[str, Any]]:
    """Answer texts in batches of similar length, the longest first, with a progress bar.

    Args:
        description: what the bar says is done.

    Returns:
        One `{"text": str, "score": float}` per text, in the order of `texts`.
    """
    import tensorflow as tf

    answer = answer_function(task)
    answers: list[dict[str, Any]] = [{}] * len(texts)
    longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index].encode()))
    with progress(description, total=len(texts), unit="sentences") as bar:
        for start in range(0, len(texts), BATCH_SIZE):
            indices = longest_first[start : start + BATCH_SIZE]
            outputs = answer(tf.constant([texts[index].encode() for index in indices]))
            columns = {name: values.numpy().tolist() for name, values in outputs.items()}
            for index, *values in zip(indices, *columns.values(), strict=True):
                answers[index] = dict(zip(columns, map(_to_text, values), strict=True))
            bar.advance(len(indices))
    return answers


def _to_text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
