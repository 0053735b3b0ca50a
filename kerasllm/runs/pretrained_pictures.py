"""A recipe for pictures that begins with trained weights, of a run or a preset: their numbers, their scaling, they."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.published import PRESET, find_run
from kerasllm.errors import UserError
from kerasllm.models.settings import FromRunSettings
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.trained_run import load_run
from kerasllm.task import Task
from kerasllm.terminal import say

HEAD = "head"
"""The layer of a model that gives the logits."""


def complete_picture_recipe(recipe: Recipe, data_dir: Path | str | None) -> Recipe:
    """The recipe with the numbers of the run or preset that it begins with; without one as it is.

    Raises:
        UserError: there is none, a run is not at its end, or the recipe asks for another model or other numbers.
    """
    source = recipe.model.pretrained
    if source is None:
        return recipe
    if source.startswith(PRESET):
        return _with_numbers_of_preset(recipe, source.removeprefix(PRESET))
    run, place = _find(recipe, data_dir), recipe.place("model", "pretrained")
    theirs = load_recipe(run.recipe_path)
    if "finished" not in run.read_manifest():
        raise UserError(f"{place}: {run.path} is not trained to its end; go on with it by `kerasllm train` first")
    trained = getattr(theirs, "model", None)
    if not isinstance(trained, FromRunSettings) or trained.name != recipe.model.name:
        name = getattr(trained, "name", theirs.task)
        raise UserError(f"{place}: {run.path} has trained a {name}, and the recipe has a {recipe.model.name}")
    model = _merged(recipe, "model", trained, {"pretrained", "dropout"})
    picture = _merged(recipe, "picture", theirs.picture, {"answer_views"})
    return recipe.model_copy(update={"model": model, "picture": picture})


def _with_numbers_of_preset(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the numbers of a preset of keras-hub, and its scaling; pictures may have another size."""
    from kerasllm.models.published.resnet_presets import numbers_of, read_resnet_preset, scaling_of

    place = recipe.place("model", "pretrained")
    if recipe.model.name != "resnet":
        raise UserError(f"{place}: {PRESET}{name} must be a ResNet, and the recipe has a {recipe.model.name}")
    try:
        trained = type(recipe.model)(**numbers_of(read_resnet_preset(name)))
        picture = type(recipe.picture)(**scaling_of(name))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    model = _merged(recipe, "model", trained, {"pretrained", "dropout", "normalization"})
    picture = _merged(recipe, "picture", picture, {"answer_views", "height", "width", "fit"}, {"height", "width"})
    return recipe.model_copy(update={"model": model, "picture": picture})


def _find(recipe: Recipe, data_dir: Path | str | None) -> RunDirectory:
    source, place = recipe.model.pretrained, recipe.place("model", "pretrained")
    try:
        run = find_run(source, Path(data_dir) if data_dir is not None else None)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    if run is None:
        raise UserError(f"{place}: {source}: holds no run; make one with `kerasllm train`")
    return run


def _merged(recipe: Recipe, section: str, theirs: Any, free: set[str], taken: Collection[str] = ()) -> Any:
    """A section of what is trained, in which what the recipe says must be the same, but for what is free.

    Of that, what is to be taken has their value where the recipe says nothing.
    """
    ours = getattr(recipe, section)
    said = {name: getattr(ours, name) for name in ours.model_fields_set}
    for name, value in said.items():
        if name not in free and value != getattr(theirs, name):
            place = recipe.place(section, name)
            raise UserError(f"{place}: is {value}, and what it begins with has {getattr(theirs, name)}; leave it out")
    kept = {name: getattr(theirs, name) for name in type(ours).model_fields if name not in free or name in taken}
    return type(ours)(**{**kept, **said})


def load_picture_weights(recipe: Recipe, task: Task, data_dir: Path | str | None) -> None:
    """Gives a new model the weights of the run or preset that its recipe begins with, if it does; of a run also those
    of the head where the labels are the same.

    Args:
        task: of the recipe, its model built.

    Raises:
        UserError: they cannot be loaded, or a weight has another shape; then nothing was set.
    """
    source = recipe.model.pretrained
    if source is None:
        return
    if source.startswith(PRESET):
        from kerasllm.models.published.resnet_presets import assign_preset, read_resnet_preset

        assign_preset(task.model, read_resnet_preset(source.removeprefix(PRESET)))
        say(f"{source}: gives everything but the head")
        return
    run = load_run(_find(recipe, data_dir).path)
    same_labels = run.task.vocabulary.labels == task.vocabulary.labels
    theirs, ours = _by_path(run.model), _by_path(task.model)
    wanted = {path: each for path, each in ours.items() if same_labels or not path.startswith(f"{HEAD}/")}
    for path, variable in wanted.items():
        if path not in theirs or theirs[path].shape != variable.shape:
            found = tuple(theirs[path].shape) if path in theirs else "nothing"
            raise UserError(f"{source}: has {found} for {path}, and {tuple(variable.shape)} is needed")
    for path, variable in wanted.items():
        variable.assign(np.asarray(theirs[path]))
    say(f"{source}: gives the head, too" if same_labels else f"{source}: its labels are others, so the head is new")


def _by_path(model: Any) -> dict[str, Any]:
    return {weight.path.removeprefix(f"{model.name}/"): weight for weight in model.weights}
