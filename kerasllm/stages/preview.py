"""How augmentation changes pictures: a grid with the first of them, each as it is and as it is in a few epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.batching import pad_batch
from kerasllm.data.preparation import prepare_data
from kerasllm.errors import UserError
from kerasllm.picture_grid import draw_grid
from kerasllm.recipe import Recipe
from kerasllm.run_directory import atomic_write_bytes
from kerasllm.runs.evaluation import png_of
from kerasllm.runs.trained_run import build_task
from kerasllm.runs.training_run import build_augmentations
from kerasllm.terminal import say

NUM_PICTURES, NUM_EPOCHS = 6, 7


def preview(recipe: Recipe, to: Path | str, data_dir: Path | str | None = None) -> dict[str, Any]:
    """Draws training pictures as they are, and as the augmentations of a recipe change them.

    Args:
        recipe: of a task whose examples hold pictures.
        to: the PNG file.
        data_dir: where the files that the recipe names lie.

    Returns:
        `picture`, the file; `examples` and `epochs`, its rows and columns.

    Raises:
        UserError: the task has no pictures, or an augmentation does not fit them.
    """
    prepared = prepare_data(recipe, data_dir)
    task, examples = build_task(recipe, prepared.directory), prepared.examples("train")
    shapes = {name: shape for name, shape in task.augmented_inputs.items() if not isinstance(shape, str)}
    if not shapes:
        raise UserError(f"{recipe.place('task')}: {recipe.task} has no pictures to be drawn")
    (name, shape), *_ = shapes.items()
    order = np.random.default_rng(recipe.seed).permutation(len(examples))
    rows = order[: min(NUM_PICTURES, len(examples))]
    batch = pad_batch(examples.features, rows)
    augmentation = build_augmentations(recipe, [], task, examples)
    seen = [augmentation(batch, rows, epoch, 0) if augmentation else batch for epoch in range(NUM_EPOCHS)]
    pictures = np.stack([each[name].reshape(-1, *shape) for each in (batch, *seen)], axis=1)  # [N, 1 + epochs, H, W, D]
    captions = ["as it is", *(f"epoch {epoch}" for epoch in range(NUM_EPOCHS))]
    captions += [""] * len(captions) * (len(rows) - 1)
    names = ", ".join(settings.name for settings in recipe.augmentation) or "no augmentation"
    figure = draw_grid(pictures.reshape(-1, *shape), captions, 1 + NUM_EPOCHS, f"{recipe.name}: {names}")
    atomic_write_bytes(Path(to), png_of(figure))
    say(f"preview: {len(rows)} pictures in {NUM_EPOCHS} epochs: {to}")
    return {"picture": str(to), "examples": len(rows), "epochs": NUM_EPOCHS}
