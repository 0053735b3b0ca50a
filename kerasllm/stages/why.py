"""Why a run takes a picture for what it does: maps of what counts, drawn over the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasllm.attribution import grad_cam, occlusion
from kerasllm.errors import UserError
from kerasllm.run_directory import atomic_write_bytes
from kerasllm.runs.evaluation import png_of
from kerasllm.runs.trained_run import load_run
from kerasllm.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SQUARES = 8
"""Of the shorter side of a picture, how many hiding squares stand side by side."""


def why(run_dir: Path | str, picture: str, to: Path | str, label: str | None = None) -> dict[str, Any]:
    """Draws what counts in a picture, for the label that the run gives it or for another one.

    Args:
        run_dir: the run directory, of a task that tells what pictures show.
        picture: a file.
        to: the PNG file.
        label: one of the run's labels; None takes the likeliest.

    Returns:
        `picture`, the file; `label`, and its `probability`.

    Raises:
        UserError: the run cannot be loaded or asks no pictures, the file is no picture, or there is no such label.
    """
    import tensorflow as tf

    run = load_run(run_dir)
    task, model = run.task, run.model
    kind = getattr(getattr(run.recipe, "classification", None), "kind", None)
    if "image_bytes" not in task.inputs or kind != "one_label":
        raise UserError(f"{run_dir}: is no run that gives pictures one label")
    labels = task.vocabulary.labels
    if label is not None and label not in labels:
        raise UserError(f"--label {label}: the run knows {', '.join(labels)}")
    pixels = task.picture.decode(tf.constant([task.read_input(picture)]))  # [1, H, W, D]
    seen = task.picture.seen(pixels)
    probabilities = tf.nn.softmax(model(seen))[0].numpy()
    chosen = int(probabilities.argmax()) if label is None else labels.index(label)
    size = max(1, min(task.picture.shape[:2]) // SQUARES)
    maps = {"hidden squares": occlusion(model, seen[0].numpy(), chosen, 2 * size, size)}
    if hasattr(model, "features"):
        found = grad_cam(model, seen, tf.constant([chosen]))[0, :, :, tf.newaxis]
        maps["Grad-CAM"] = tf.image.resize(found, task.picture.shape[:2], "bicubic")[:, :, 0].numpy()
    title = f"{labels[chosen]}: {probabilities[chosen]:.1%}"
    atomic_write_bytes(Path(to), png_of(draw_maps(pixels[0].numpy(), maps, title)))
    say(f"why: {title}; what counts: {to}")
    return {"picture": str(to), "label": labels[chosen], "probability": float(probabilities[chosen])}


def draw_maps(picture: np.ndarray, maps: dict[str, np.ndarray], title: str) -> Figure:
    """A picture, and it again under each map: red counts for the label, blue against it.

    Args:
        picture: uint8 [H, W, D].
        maps: name -> float32 [H, W].
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * (1 + len(maps)), 3.4), layout="constrained")
    figure.suptitle(title)
    shown = picture.squeeze(-1) if picture.shape[-1] == 1 else picture
    for place, (name, values) in zip(figure.subplots(1, 1 + len(maps)), {"": None, **maps}.items(), strict=True):
        place.set_axis_off()
        place.set_title(name)
        place.imshow(shown, cmap="gray", vmin=0, vmax=255)
        if values is not None:
            greatest = float(np.abs(values).max()) or 1.0
            place.imshow(values, cmap="RdBu_r", vmin=-greatest, vmax=greatest, alpha=0.55)
    return figure
