"""What a recipe can say in `training.optimizer`: an optimizer by name, with its own arguments. Loads no TensorFlow.

    name       arguments of its own                                     the step, with gradient g and rate r
    sgd                                                                 w -= r g
    momentum   momentum                                                 v = m v - r g; w += v
    nesterov   momentum                                                 v = m v - r g; w += m v - r g
    adagrad    initial_accumulator_value, epsilon                       a += g^2; w -= r g / sqrt(a + e)
    rmsprop    rho, momentum, epsilon, centered                         s = rho s + (1-rho) g^2; w -= r g / sqrt(s + e)
    adam       beta_1, beta_2, epsilon, amsgrad                         w -= r mean(g) / (sqrt(mean(g^2)) + e)
    adamw      beta_1, beta_2, epsilon, amsgrad                         that of adam, with weight_decay
    lion       beta_1, beta_2                                           w -= r sign(b1 m + (1 - b1) g)
    muon       momentum, nesterov, ns_steps, rms_rate, exclude_layers,  w -= r * the nearest orthogonal matrix to
               adam_beta_1, adam_beta_2, epsilon, adam_lr_ratio         the momentum; adamw for what is no matrix
    adafactor  beta_2_decay, epsilon_1, epsilon_2, clip_threshold       adam with rows and columns for mean(g^2)

All have `weight_decay`, `layer_decay` and `patterns` besides. The algorithms are Keras's; `optimizers.py` builds them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from kerasllm.settings import Settings


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


PathPattern = Annotated[str, AfterValidator(_compilable)]
"""A regular expression that is looked for anywhere in a variable's path; `^` and `$` bind it to the ends."""


class PatternSettings(Settings):
    """What is different for the variables whose path matches."""

    match: PathPattern
    learning_rate_factor: float = Field(default=1.0, ge=0)
    """Of the scheduled rate; comes on top of `layer_decay`."""
    weight_decay: float | None = Field(default=None, ge=0)
    """In place of the optimizer's, for biases and norms too if they match; null leaves it."""


class BaseOptimizerSettings(Settings):
    """What every optimizer has."""

    keras_class: ClassVar[str]
    """Its name in `keras.optimizers`."""
    fixed_arguments: ClassVar[dict[str, Any]] = {}
    """What Keras is told besides the settings."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled: before its step a variable loses rate * weight_decay of itself; biases and norms do not."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """The rate of block i of n (from 0) is times layer_decay ** (n - i), that of embeddings times
    layer_decay ** (n + 1), that of all else, such as heads, as scheduled."""
    patterns: tuple[PatternSettings, ...] = ()
    """The first one that matches a variable counts for it."""

    @property
    def keras_arguments(self) -> dict[str, Any]:
        """What the Keras class is made with, besides the learning rate."""
        return {**self.model_dump(exclude={"name", "layer_decay", "patterns"}), **self.fixed_arguments}


class SgdSettings(BaseOptimizerSettings):
    """Plain gradient descent."""

    keras_class = "SGD"
    name: Literal["sgd"] = "sgd"


class MomentumSettings(BaseOptimizerSettings):
    """Gradient descent with momentum, [Polyak, 1964](https://doi.org/10.1016/0041-5553(64)90137-5)."""

    keras_class = "SGD"
    name: Literal["momentum"] = "momentum"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    """Share of the last step that is taken again."""


class NesterovSettings(BaseOptimizerSettings):
    """Momentum that looks one step ahead, [Sutskever et al., 2013](https://proceedings.mlr.press/v28/sutskever13)."""

    keras_class = "SGD"
    fixed_arguments = {"nesterov": True}
    name: Literal["nesterov"] = "nesterov"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    """Share of the last step that is taken again."""


class AdagradSettings(BaseOptimizerSettings):
    """[Duchi et al., 2011](https://jmlr.org/papers/v12/duchi11a.html)."""

    keras_class = "Adagrad"
    name: Literal["adagrad"] = "adagrad"
    initial_accumulator_value: float = Field(default=0.1, ge=0)
    """What the sum of squared gradients begins with."""
    epsilon: float = Field(default=1e-7, gt=0)
    """Added to that sum, under the root."""


class RmspropSettings(BaseOptimizerSettings):
    """[Hinton, 2012](http://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf)."""

    keras_class = "RMSprop"
    name: Literal["rmsprop"] = "rmsprop"
    rho: float = Field(default=0.9, ge=0, lt=1)
    """Share of the running mean of squared gradients that stays at each step."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Share of the last step that is taken again."""
    epsilon: float = Field(default=1e-7, gt=0)
    """Added to that mean, under the root."""
    centered: bool = False
    """Divide by the deviation of the gradient, not by its root mean square."""


class AdamSettings(BaseOptimizerSettings):
    """[Kingma and Ba, 2015](https://arxiv.org/abs/1412.6980), with the betas of the Transformer paper."""

    keras_class = "Adam"
    name: Literal["adam"] = "adam"
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    """Share of the running mean of gradients that stays at each step."""
    beta_2: float = Field(default=0.98, ge=0, lt=1)
    """Share of the running mean of squared gradients that stays at each step."""
    epsilon: float = Field(default=1e-9, gt=0)
    """Added to the root of that mean."""
    amsgrad: bool = False
    """Divide by the greatest such mean so far, [Reddi et al., 2018](https://openreview.net/forum?id=ryQu7f-RZ)."""


class AdamWSettings(AdamSettings):
    """Adam with decoupled weight decay, [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)."""

    keras_class = "AdamW"
    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled: before its step a variable loses rate * weight_decay of itself; biases and norms do not."""


class LionSettings(BaseOptimizerSettings):
    """[Chen et al., 2023](https://arxiv.org/abs/2302.06675). Each element moves by the rate: take a tenth of Adam's."""

    keras_class = "Lion"
    name: Literal["lion"] = "lion"
    beta_1: float = Field(default=0.9, gt=0, lt=1)
    """Share of the momentum in the sign that is followed."""
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    """Share of the momentum that stays at each step."""


class MuonSettings(BaseOptimizerSettings):
    """[Jordan, 2024](https://kellerjordan.github.io/posts/muon/), scaled as by
    [Liu et al., 2025](https://arxiv.org/abs/2502.16982) so that it takes the rates and the decay of AdamW.

    Matrices take the nearest orthogonal matrix to their momentum as their step. AdamW is used for what is not a matrix,
    for what has `embedding` in its path, and for what `exclude_layers` names.
    """

    keras_class = "Muon"
    name: Literal["muon"] = "muon"
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled: before its step a variable loses rate * weight_decay of itself; biases and norms do not."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Share of the momentum that stays at each step."""
    nesterov: bool = True
    """Look one step ahead."""
    ns_steps: int = Field(default=5, ge=1)
    """Newton-Schulz iterations towards the orthogonal matrix."""
    rms_rate: float | None = Field(default=0.2, gt=0)
    """Root mean square of an element of the step, in rates; null leaves the orthogonal matrix as it is."""
    exclude_layers: tuple[PathPattern, ...] = ("table$", r"(^|/)(\w+_)?(logits|head|classifier)/")
    """Matrices that AdamW moves: by default the tables of tokens and positions, and the heads of a model."""
    adam_beta_1: float = Field(default=0.9, ge=0, lt=1)
    """`beta_1` of AdamW."""
    adam_beta_2: float = Field(default=0.98, ge=0, lt=1)
    """`beta_2` of AdamW."""
    epsilon: float = Field(default=1e-9, gt=0)
    """`epsilon` of AdamW."""
    adam_lr_ratio: float = Field(default=1.0, gt=0)
    """The rate of AdamW, in rates."""


class AdafactorSettings(BaseOptimizerSettings):
    """[Shazeer and Stern, 2018](https://arxiv.org/abs/1804.04235): Adam that keeps a row and a column for a matrix.

    The step of a variable is relative to its root mean square, and the rate at most 1 / sqrt(step).
    """

    keras_class = "Adafactor"
    name: Literal["adafactor"] = "adafactor"
    beta_2_decay: float = Field(default=-0.8, lt=0)
    """Share of the mean of squared gradients that is new at step t is t ** beta_2_decay."""
    epsilon_1: float = Field(default=1e-16, gt=0)
    """Added to each squared gradient. With Keras's default of 1e-30, gradients that are always 0 make weights NaN."""
    epsilon_2: float = Field(default=1e-3, gt=0)
    """Least root mean square of a variable that its step is relative to."""
    clip_threshold: float = Field(default=1.0, gt=0)
    """Greatest root mean square of a step, before it is scaled."""


OptimizerSettings = Annotated[
    SgdSettings
    | MomentumSettings
    | NesterovSettings
    | AdagradSettings
    | RmspropSettings
    | AdamSettings
    | AdamWSettings
    | LionSettings
    | MuonSettings
    | AdafactorSettings,
    Field(discriminator="name"),
]
