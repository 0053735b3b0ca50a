"""A trained run, ready to answer: its recipe, its task with the trained weights, and answers to many texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasllm.data.published import find_run
from kerasllm.data.vocabulary import load_vocabulary
from kerasllm.errors import UserError
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.task import Task
from kerasllm.terminal import progress

if TYPE_CHECKING:
    import tensorflow as tf

    from kerasllm.models.published.bert import PublishedBert

BATCH_SIZE = 64


@dataclass(frozen=True)
class TrainedRun:
    """What `load_run` gives."""

    directory: RunDirectory
    recipe: Recipe
    task: Task
    model: Any
    progress: dict[str, Any]
    """What was saved beside the weights: which ones were chosen, and how good they are."""


def build_task(recipe: Recipe, directory: Path) -> Task:
    """The task of a recipe, with the vocabulary that lies in a prepared directory or in a run.

    Raises:
        UserError: the vocabulary cannot be read, or the recipe does not fit the task.
    """
    return recipe.task_class(recipe, load_vocabulary(directory))


def build_model(task: Task, recipe: Recipe) -> Any:
    """The model of a task, adapted as the recipe says, with gates where its timeline blends layers of normalization in
    or out.

    Raises:
        UserError: the section `tuning` does not fit the model.
    """
    from kerasllm.layers.normalization import gated_normalization
    from kerasllm.training.normalization_gates import gated_layers
    from kerasllm.tuning.adaptation import adapt

    with gated_normalization(gated_layers(recipe.ticks)):
        model = task.build_model()
    try:
        adapt(model, recipe.tuning)
    except UserError as error:
        key, _, what = str(error).partition(": ")
        raise UserError(f"{recipe.place('tuning', key)}: {what}") from error
    return model


def load_run(run_dir: Path | str, overrides: Sequence[str] = (), data_dir: Path | str | None = None) -> TrainedRun:
    """Build the task and the model of a run, with the weights that its training chose; LoRA is merged into them.

    Args:
        run_dir: the run directory; its recipe is the one that is used.
        overrides: `section.key=value`, such as `generation.beam_size=1`.
        data_dir: where the published weights lie that the run builds on; by default where they lay in training.

    Raises:
        UserError: no run there, an override that is wrong, no tokenizer or checkpoint that can be read, or published
            weights that are not there or have changed.
    """
    from kerasllm.runs.base_weights import load_base
    from kerasllm.training.checkpoints import load_weights
    from kerasllm.tuning.adaptation import merge

    directory = RunDirectory(run_dir)
    if not directory.exists():
        raise UserError(f"{run_dir}: holds no run; make one with `kerasllm train RECIPE --run-dir {run_dir}`")
    recipe = load_recipe(directory.recipe_path, overrides)
    task = build_task(recipe, directory.path)
    model = build_model(task, recipe)
    progress = load_weights(model, directory, load_base(directory, recipe, model, data_dir, read_source))
    merge(model)
    return TrainedRun(directory, recipe, task, model, progress)


def heads_of(task: Task) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The heads of a task by their published names, and their labels; none for a task that has no such name."""
    try:
        _, heads, labels = task.published_form()
    except UserError:
        return {}, ()
    return dict(heads), tuple(labels)


def read_source(source: str, root: Path | None = None) -> PublishedBert:
    """The weights of a run, those that its training chose, or published ones.

    Raises:
        UserError: they cannot be read, or are those of no plain `Bert`.
    """
    from kerasllm.models.bert import Bert
    from kerasllm.models.published.bert import published_of, read_published

    directory = find_run(source, root)
    if directory is None:
        return read_published(source, root)
    run = load_run(directory.path)
    if not isinstance(run.model, Bert):
        raise UserError(f"{source}: its task, {run.recipe.task}, trains no Bert; name a run that does")
    if run.recipe.tuning.name in ("prompt", "prefix"):
        raise UserError(f"{source}: was adapted by a {run.recipe.tuning.name}, which a plain Bert has no place for")
    for variable in run.model.weights:
        if variable.name == "gate" and float(variable.value) != 1:
            raise UserError(f"{source}: {variable.path} is {float(variable.value):.3g}, and a plain Bert has no gates; "
                            "train the run until they are open")  # fmt: skip
    heads, labels = heads_of(run.task)
    return published_of(run.model, source, heads, labels)


@lru_cache(maxsize=1)
def answer_function(task: Task) -> tf.types.experimental.PolymorphicFunction:
    """`task.answer` as one graph for any batch size: a string [B] for each input, by name, to outputs by name.

    The graph of the last task is kept: it takes seconds to trace, and training evaluates many times.
    """
    return as_graph(task.answer, task.inputs)


def as_graph(function: Callable[..., Any], inputs: Iterable[str]) -> tf.types.experimental.PolymorphicFunction:
    """A function of strings [B], one for each of the inputs, as a graph for any B."""
    import tensorflow as tf

    signature = [tf.TensorSpec([None], tf.string, name=name) for name in inputs]
    return tf.function(function, input_signature=signature, autograph=False)


def answer_texts(task: Task, columns: Sequence[Sequence[str | bytes]], description: str) -> list[dict[str, Any]]:
    """Answer texts in batches of similar length, the longest first, with a progress bar.

    Args:
        columns: for each of the task's inputs the texts, or the contents of files.
        description: what the bar says is done.

    Returns:
        The outputs by name for each text, in their order, such as `{"text": str, "score": float}`.
    """
    import tensorflow as tf

    answer = answer_function(task)
    rows = list(zip(*columns, strict=True))
    answers: list[dict[str, Any]] = [{}] * len(rows)
    rows = [[value if isinstance(value, bytes) else value.encode() for value in row] for row in rows]
    longest_first = sorted(range(len(rows)), key=lambda index: -sum(map(len, rows[index])))
    with progress(description, total=len(rows), unit="records") as bar:
        for start in range(0, len(rows), BATCH_SIZE):
            indices = longest_first[start : start + BATCH_SIZE]
            columns = zip(*(rows[index] for index in indices), strict=True)
            outputs = answer(*map(tf.constant, columns))
            values = {name: _to_plain(array.numpy().tolist()) for name, array in outputs.items()}
            for index, *row in zip(indices, *values.values(), strict=True):
                answers[index] = dict(zip(values, row, strict=True))
            bar.advance(len(indices))
    return answers


def _to_plain(value: Any) -> Any:
    """Nested lists with their bytes as text."""
    if isinstance(value, list):
        return [_to_plain(each) for each in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
