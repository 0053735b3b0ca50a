"""What a recipe can say in its section `tuning`: how a pretrained model is adapted, by name. Loads no TensorFlow.

    name        what is trained
    full        everything
    top_layers  the last blocks, and what comes after them: pooler and heads
    only        what a pattern names
    lora        small additions to projections, and the heads
    prompt      vectors in front of the input, and the heads
    prefix      keys and values in front of those of each attention, and the heads

What is not trained stays as it is for the whole run; ticks can freeze more of the rest, and free that again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kerasllm.settings import Settings
from kerasllm.training.optimizer_settings import PathPattern


class FullSettings(Settings):
    """All weights are trained."""

    name: Literal["full"] = "full"


class TopLayersSettings(Settings):
    """The last blocks are trained, and what comes after them; embeddings and the blocks below are frozen."""

    name: Literal["top_layers"] = "top_layers"
    num_layers: int = Field(default=2, ge=0)
    """Blocks that are trained, counted from the last; 0 trains what comes after them alone."""


class OnlySettings(Settings):
    """The variables that a pattern names are trained, and no others: `bias$|^head/`, say."""

    name: Literal["only"] = "only"
    variables: PathPattern
    """A regular expression that is looked for in the paths of the variables."""


class AdapterSettings(Settings):
    """What all ways have that leave the model frozen and add something to it."""

    train_pooler: bool | None = None
    """Whether the pooler is trained with the heads; null: if it begins at random, as published weights may lack it."""


class LoraSettings(AdapterSettings):
    """Low-rank additions to the kernels of projections: see `low_rank.py`. They are merged when the run is loaded."""

    name: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Of each addition."""
    alpha: float = Field(default=16.0, gt=0)
    """An addition counts alpha / rank times, so that the learning rate need not change with the rank."""
    projections: PathPattern = "query|value"
    """A regular expression that is looked for in the paths of the projections. Those of an attention are
    `layer_0/self_attention/query`, `key`, `value` and `output`; those of a feed-forward network `expand` and
    `contract`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate applied to what goes into an addition. Above 0 a step takes longer: the addition is then a product of its
    own."""


class PromptSettings(AdapterSettings):
    """Learnt vectors in front of the embedded tokens: see `prompts.py`."""

    name: Literal["prompt"] = "prompt"
    num_tokens: int = Field(default=20, ge=1)
    """Vectors."""


class PrefixSettings(AdapterSettings):
    """Learnt keys and values in front of those of each self-attention: see `prompts.py`."""

    name: Literal["prefix"] = "prefix"
    num_tokens: int = Field(default=20, ge=1)
    """Keys, and as many values, of each attention."""


TuningSettings = Annotated[
    FullSettings | TopLayersSettings | OnlySettings | LoraSettings | PromptSettings | PrefixSettings,
    Field(discriminator="name"),
]
