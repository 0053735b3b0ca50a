"""Trained weights that a run builds on and leaves as they are: its checkpoints do not hold them.

The manifest of the run says where they were found and what they were, `base: {source, data_dir, sha256}`, so that they
are found again, and others under their name are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.errors import UserError
from kerasllm.models.bert import Bert
from kerasllm.models.published.bert import PublishedBert, variables_of
from kerasllm.recipe import Recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.training.variable_paths import frozen_weights

BASE = "base"
"""The entry of the manifest."""


def base_weights(model: Any, recipe: Recipe) -> tuple[Any, ...]:
    """The variables of a built model that come from trained weights and are never trained.

    A run that trains in full has none: what a timeline freezes may be trained later on. The pooler is one only where
    the recipe says that it came with the others.
    """
    source = getattr(getattr(recipe, "model", None), "pretrained", None)
    if source is None or recipe.tuning.name == "full" or not isinstance(model, Bert):
        return ()
    published = {id(variable) for variable, _ in variables_of(model, {})}
    if getattr(recipe.tuning, "train_pooler", None) is not False:
        published -= {id(variable) for variable in model.pooler.weights}
    return tuple(variable for variable in frozen_weights(model) if id(variable) in published)


def checksum_of(variables: tuple[Any, ...]) -> str:
    """Hexadecimal SHA-256 of the paths and values of variables."""
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(variable.path.encode("utf-8"))
        digest.update(np.ascontiguousarray(variable.value))
    return digest.hexdigest()


def remember_base(directory: RunDirectory, recipe: Recipe, weights: tuple[Any, ...], data_dir: Any) -> None:
    """Notes in the manifest of a run what its model builds on, or compares it with what is noted there.

    Args:
        weights: from `base_weights`, with their values.

    Raises:
        UserError: the run was begun with others.
    """
    noted, checksum = directory.read_manifest().get(BASE), checksum_of(weights)
    if noted is None:
        root = None if data_dir is None else str(Path(data_dir).absolute())
        base = {"source": recipe.model.pretrained, "data_dir": root, "sha256": checksum}
        directory.write_manifest(**{BASE: base})
    elif noted["sha256"] != checksum:
        raise UserError(_changed(directory, noted, checksum))


def load_base(
    directory: RunDirectory,
    recipe: Recipe,
    model: Any,
    data_dir: Path | str | None,
    read_source: Callable[[str, Path | None], PublishedBert],
) -> tuple[Any, ...]:
    """Gives the model of a run the weights that it builds on, if its checkpoints do not hold them.

    They are looked for in the data directory that is given, and then in the one that the run was trained with.

    Args:
        model: new.
        read_source: reads the weights of that name, relative to a directory.

    Returns:
        The variables that have their values now.

    Raises:
        UserError: they are not found, or others are in their place.
    """
    noted = directory.read_manifest().get(BASE)
    if noted is None:
        return ()
    weights, error = base_weights(model, recipe), None
    given = () if data_dir is None else (str(data_dir),)
    for root in dict.fromkeys((*given, noted["data_dir"])):
        try:
            read_source(noted["source"], None if root is None else Path(root)).assign(model)
        except UserError as missing:
            error = error or missing
            continue
        if (checksum := checksum_of(weights)) == noted["sha256"]:
            return weights
        error = UserError(_changed(directory, noted, checksum))
    if str(error).startswith(str(directory.path)):
        raise error
    raise UserError(
        f"{directory.path}: holds only what it has learnt on top of {noted['source']}, which cannot be loaded "
        f"({error}); name the directory that holds it with --data-dir"
    )


def _changed(directory: RunDirectory, noted: dict[str, Any], checksum: str) -> str:
    return (
        f"{directory.path}: was trained on top of other weights than {noted['source']} holds now "
        f"({noted['sha256'][:12]}, and now {checksum[:12]}); put those back, or train in another --run-dir"
    )
