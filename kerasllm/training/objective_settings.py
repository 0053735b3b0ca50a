"""What a recipe can say in `training.objective`: what is minimised. Loads no TensorFlow.

    objective: {name: supervised}                                           # the default
    objective: {name: r_drop, alpha: 5.0}
    objective: {name: fgm, epsilon: 1.0}
    objective: {name: pgd, epsilon: 1.0, step_size: 0.3, steps: 3, around: {name: r_drop, alpha: 5.0}}
    objective: {name: distillation, teacher: runs/large}

The objectives on perturbed input stand around another one, and so does distillation; see `training/adversarial.py` and
`training/distillation.py` for their formulas.
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


class PseudoLabelsSettings(Settings):
    """Pseudo-labels: examples without a label get the one that the model gives them, where it is sure."""

    name: Literal["pseudo_labels"]
    threshold: float = Field(default=0.95, gt=0, le=1)
    """Probability from which the model is sure."""
    weight: float = Field(default=1.0, ge=0)
    """Of an example without a label, beside one with a label."""


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
    """Feature of the batch, of type float, or of pixels from 0 to 255."""
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


class DistillationSettings(Settings):
    """Distillation: a trained model, the teacher, says what is to be answered, too."""

    name: Literal["distillation"]
    teacher: str
    """A run, or a directory in Hugging Face's layout with a classifier (or `hf:OWNER/NAME`), both relative to where the
    command is typed. It must have the tokens and the labels of this recipe."""
    temperature: float = Field(default=2.0, gt=0)
    """What the logits of both are divided by."""
    soft_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's answers in the loss; the rest is that of the labels."""
    hidden_weight: float = Field(default=0.0, ge=0)
    """Weight of the squared difference of the hidden vectors; of models that can record them, such as a Bert."""
    around: ObjectiveSettings = SupervisedSettings()
    """The objective that takes both kinds of loss for that of the task."""

    @model_validator(mode="after")
    def _check_weights(self) -> DistillationSettings:
        if not self.soft_share and not self.hidden_weight:
            raise ValueError("nothing is learnt from the teacher; raise soft_share or hidden_weight")
        return self


ObjectiveSettings = Annotated[
    SupervisedSettings
    | RDropSettings
    | PseudoLabelsSettings
    | FgmSettings
    | PgdSettings
    | PgdInputSettings
    | FreeLbSettings
    | DistillationSettings,
    Field(discriminator="name"),
]
