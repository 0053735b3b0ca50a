"""What a recipe can say in `training.objective`: what is minimised. Loads no TensorFlow.

    objective: {name: supervised}                                           # the default
    objective: {name: r_drop, alpha: 5.0}
    objective: {name: fgm, epsilon: 1.0}
    objective: {name: pgd, epsilon: 1.0, step_size: 0.3, steps: 3, around: {name: r_drop, alpha: 5.0}}

The objectives on perturbed input stand around another one; see `training/adversarial.py` for their formulas.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kerasllm.settings import Settings


class SupervisedSettings(Settings):
    """The loss of the task alone."""

    name: Literal["supervised"] = "supervised"


class RDropSettings(Settings):
    """R-Drop: two passes with different dropout, and how far their predictions are apart."""

    name: Literal["r_drop"]
    alpha: float = Field(ge=0)
    """Weight of the divergence, as in the paper, which takes 5 for translation and 0.5 to 1 for classification."""


class AroundSettings(Settings):
    """What the objectives on perturbed input share."""

    around: ObjectiveSettings = SupervisedSettings()
    """The objective that is computed on the perturbed input."""


class FgmSettings(AroundSettings):
    """One step up the gradient, on embeddings."""

    name: Literal["fgm"]
    epsilon: float = Field(ge=0)
    """Length of the perturbation of an embedded sequence, all its positions together, in the unit of the embedding."""


class PgdSettings(AroundSettings):
    """Several steps up the gradient, on embeddings."""

    name: Literal["pgd"]
    epsilon: float = Field(ge=0)
    """Greatest length of the perturbation of an embedded sequence, in the unit of the embedding."""
    step_size: float = Field(gt=0)
    """Length of one step, in the same unit."""
    steps: int = Field(default=3, ge=1)
    """Steps before the pass that is trained on; each costs a forward and a backward pass."""


class PgdInputSettings(AroundSettings):
    """Several steps up the gradient, on a float input such as an image."""

    name: Literal["pgd_input"]
    input: str
    """Feature of the batch, of type float."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """Least and greatest value that the input can have."""
    epsilon: float = Field(ge=0)
    """Greatest change of any element, in the unit of the input."""
    step_size: float = Field(gt=0)
    """Change of an element in one step, in the same unit."""
    steps: int = Field(default=7, ge=1)
    """Steps before the pass that is trained on; each costs a forward and a backward pass."""

    @model_validator(mode="after")
    def _check_range(self) -> PgdInputSettings:
        if self.input_range[0] >= self.input_range[1]:
            raise ValueError(f"input_range {list(self.input_range)} is empty; give the least value, then the greatest")
        return self


class FreeLbSettings(AroundSettings):
    """FreeLB: the mean over several steps from a random start, on embeddings."""

    name: Literal["free_lb"]
    epsilon: float = Field(ge=0)
    """Greatest length of the perturbation of an embedded sequence, in the unit of the embedding."""
    step_size: float = Field(gt=0)
    """Length of one step, in the same unit."""
    steps: int = Field(default=3, ge=1)
    """Passes that are averaged; each costs a forward and a backward pass."""


ObjectiveSettings = Annotated[
    SupervisedSettings | RDropSettings | FgmSettings | PgdSettings | PgdInputSettings | FreeLbSettings,
    Field(discriminator="name"),
]
