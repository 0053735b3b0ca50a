"""From a published sentence encoder to a recipe that answers with it as it is: there is nothing to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerasllm.first_recipes.choices import name_source
from kerasllm.run_directory import atomic_write_text
from kerasllm.terminal import say

TEMPLATE = """\
# Gives sentences vectors by the encoder {source} as it is.
# command: kerasllm train {to} --run-dir runs/{name}
# Made by `kerasllm new`. Nothing is trained: `train` makes a run that predicts and is exported.
task: embed
data: {{source: none}}
# How it was trained to make one vector of those of all tokens; its 1_Pooling/config.json says whether by their mean.
embedding: {{pooling: mean, normalize: true}}
model: {{pretrained: {source}}}
training: {{train_steps: 0}}
"""


def new_encoder(pretrained: str, to: Path) -> dict[str, Any]:
    """Writes the recipe.

    Args:
        pretrained: as in `PretrainedBertSettings`.
        to: the recipe, which does not exist.

    Returns:
        `recipe`.
    """
    atomic_write_text(to, TEMPLATE.format(source=name_source(pretrained), to=to, name=to.stem))
    say(f"new: {to} is written")
    return {"recipe": str(to)}
