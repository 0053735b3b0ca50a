"""From somebody's folder of pictures, or an archive of it, to a recipe that trains a classifier on it."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kerasllm.data.pictures import read_pictures
from kerasllm.data.source_settings import LABEL, PICTURE
from kerasllm.errors import UserError
from kerasllm.first_recipes.choices import AIMED_STEPS, EPOCHS, SHARES, clip, name_file
from kerasllm.run_directory import atomic_write_text
from kerasllm.terminal import progress, say, show_table

BATCH_SIZE, MAX_MEASURED, MIN_PER_LABEL = 64, 1000, 10
SIDES = range(16, 129, 8)
"""Of what pictures become; larger ones take long to learn from."""
TEMPLATE = """\
# Tells {labels} apart in the pictures of {folder_name}.
# command: kerasllm train {to} --run-dir runs/{name}
# Made by `kerasllm new` from what the folder holds; change what you like. All settings there are, with their defaults,
# stand in runs/{name}/recipe.yaml once it was trained. `kerasllm preview {to}` draws what augmentation does.
task: classify_image
seed: 1

data:
  source: pictures
  # A folder with a folder for each label, or a tar archive of it; relative to where the command is typed, or to
  # --data-dir.
  train: {folder}
  # Shares of the pictures: one chooses the best weights, and `kerasllm evaluate` measures on the other. Name folders
  # instead if you have them.
  validation: {validation}
  test: {test}

# What every picture becomes. Mean and deviation are those of {measured} of them.
picture: {{height: {height}, width: {width}, channels: {channels}, mean: {mean}, stddev: {stddev}}}

batching: {{global_batch_size: {batch_size}}}

# More blocks and filters learn more from more pictures, and take longer.
model: {{name: resnet, blocks: {blocks}, filters: [16, 32, 64]}}

# Leave out what changes a label: the mirror image of a letter is none.
augmentation:
  - {{name: flip}}
  - {{name: shift, pixels: {shift}}}

training:
  train_epochs: {epochs}
  # Where there is no GPU, two halves of each batch are learnt from side by side.
  cpu_replicas: 2
  peak_learning_rate: 0.1
  optimizer: {{name: nesterov}}
  schedule: {{name: one_cycle}}
  l2: 0.0005
  evaluate_every_epochs: {every}
  best_metric: accuracy
"""


@dataclass
class Found:
    """What a folder holds."""

    labels: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    colors: list[np.ndarray] = field(default_factory=list)
    """Of each measured picture the sums of pixels from 0 to 1 and of their squares, and how many, [3, D]."""
    is_grey: bool = True


def new_pictures(folder: Path, to: Path) -> dict[str, Any]:
    """Look at pictures, and write a commented recipe for a classifier.

    Args:
        folder: with a folder for each label, or a tar archive of it.
        to: the recipe, which does not exist.

    Returns:
        `recipe`, `task`, `labels` (how many pictures each has), `damaged` (pictures that cannot be read), and the
        `height`, `width` and `channels` that pictures will have.

    Raises:
        UserError: there is no picture, one lies in no folder, or a label has too few to be learnt and measured.
    """
    found = look_at(folder)
    if len(found.labels) < 2:
        only = ", ".join(found.labels) or "no folder with a picture"
        raise UserError(f"{folder}: has {only}; there must be two labels to choose from, each a folder of pictures")
    label, count = min(found.labels.items(), key=lambda item: item[1])
    if count < MIN_PER_LABEL:
        raise UserError(
            f"{folder}: {label} has {count} pictures, too few to be learnt and measured; add some up to {MIN_PER_LABEL}"
        )
    settings = sizes_for(found)
    atomic_write_text(to, write_recipe(folder, found, settings, to))
    labels = dict(found.labels.most_common())
    shown = [f"{label} ({count:,})" for label, count in labels.items()]
    size = f"{settings['height']} x {settings['width']}, {'grey' if settings['channels'] == 1 else 'colour'}"
    rows = [
        ("labels", ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if shown[10:] else "")),
        ("pictures", f"{sum(found.labels.values()):,}, and {found.damaged:,} that cannot be read"),
        ("size", f"{size}; {size_of(found.heights)} x {size_of(found.widths)} in the files"),
    ]
    show_table(f"new: {folder}", ("", ""), rows)
    say(f"new: {to} is written; the folder that a picture lies in is its label")
    kept = {name: settings[name] for name in ("height", "width", "channels")}
    return {"recipe": str(to), "task": "classify_image", "labels": labels, "damaged": found.damaged, **kept}


def look_at(folder: Path) -> Found:
    """Reads all pictures, and measures some of them."""
    found = Found()
    with progress(f"look at {folder.name}", unit="pictures") as bar:
        for record in read_pictures(folder):
            bar.advance(1)
            if not record[PICTURE]:
                found.damaged += 1
                continue
            found.labels[record[LABEL]] += 1
            if found.labels[record[LABEL]] <= MAX_MEASURED // 10 or len(found.heights) < MAX_MEASURED:
                measure(record[PICTURE], found)
    return found


def measure(content: bytes, found: Found) -> None:
    """Adds size and colours of a picture."""
    with Image.open(io.BytesIO(content)) as picture:
        found.heights.append(picture.height)
        found.widths.append(picture.width)
        found.is_grey = found.is_grey and picture.mode in ("1", "L", "LA", "I;16")
        pixels = np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3) / 255
    found.colors.append(np.stack([pixels.sum(0), np.square(pixels).sum(0), np.full(3, len(pixels))]))


def sizes_for(found: Found) -> dict[str, Any]:
    """Numbers of the section `picture` that suit what was found."""
    sums = np.sum(found.colors, axis=0)
    mean = sums[0] / sums[2]
    stddev = np.sqrt(np.maximum(sums[1] / sums[2] - mean**2, 1e-4))
    channels = 1 if found.is_grey else 3
    height, width = float(np.median(found.heights)), float(np.median(found.widths))
    longest = max(height, width)
    scale = min(1.0, SIDES[-1] / longest)
    sides = [clip(8 * round(side * scale / 8), SIDES) for side in (height, width)]
    kept = slice(0, channels)
    return {
        "height": sides[0],
        "width": sides[1],
        "channels": channels,
        "mean": [round(float(each), 3) for each in mean[kept]],
        "stddev": [round(float(each), 3) for each in stddev[kept]],
    }


def size_of(sides: list[int]) -> str:
    """`32`, or `20 to 400` where they differ."""
    return f"{sides[0]}" if min(sides) == max(sides) else f"{min(sides)} to {max(sides)}"


def write_recipe(folder: Path, found: Found, settings: dict[str, Any], to: Path) -> str:
    """The recipe, with sizes that suit the number of pictures."""
    num_train = sum(found.labels.values()) * (1 - sum(SHARES.values()))
    epochs = clip(math.ceil(AIMED_STEPS / math.ceil(num_train / BATCH_SIZE)), EPOCHS)
    labels = [label for label, _ in found.labels.most_common(5)]
    return TEMPLATE.format(
        labels=", ".join(labels) + (" and others" if len(found.labels) > len(labels) else ""),
        folder_name=folder.name,
        to=to,
        name=to.stem,
        folder=name_file(folder),
        measured=f"{len(found.heights):,}",
        **SHARES,
        **settings,
        batch_size=BATCH_SIZE,
        blocks=[2, 2, 2] if num_train >= 5_000 else [1, 1, 1],
        shift=max(1, min(settings["height"], settings["width"]) // 10),
        epochs=epochs,
        every=max(1, epochs // 10),
    )
