"""Pictures side by side, each with a line below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION_CHARACTERS = 28


def draw_grid(pictures: np.ndarray, captions: Sequence[str], columns: int, title: str) -> Figure:
    """Pictures row by row.

    Args:
        pictures: uint8 [N, H, W, D], D 1 or 3.
        captions: a line for each; "" for none.
        columns: how many stand side by side.
        title: above all of them.
    """
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for place in axes:
        place.set_axis_off()
    for place, picture, caption in zip(axes, pictures, captions, strict=False):
        place.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
        short = caption if len(caption) <= CAPTION_CHARACTERS else f"{caption[: CAPTION_CHARACTERS - 1]}…"
        place.set_title(short.replace("$", r"\$"), fontsize=8)
    return figure
