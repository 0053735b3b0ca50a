"""What a recipe can say in its section `ticks`: when something of the training changes, and what. No TensorFlow."""

from __future__ import annotations

from pydantic import Field, model_validator

from kerasllm.settings import Settings
from kerasllm.training.objective_settings import ObjectiveSettings
from kerasllm.training.optimizer_settings import PathPattern
from kerasllm.training.schedule_settings import ScheduleSettings

WHEN = ("at_step", "at_epoch", "at_share", "when_plateau")


class PlateauSettings(Settings):
    """A metric of the validation split that no longer gets better; it may happen again and again."""

    metric: str = "loss"
    """As the evaluations name it, with or without `validation_`; `loss` and `perplexity` are better when lower."""
    patience_evaluations: int = Field(default=2, ge=1)
    """Evaluations in a row without a better value."""


class BlendSettings(Settings):
    """Layers of normalization that are blended in or out."""

    layers: PathPattern
    """Regular expression, found anywhere in a layer's path, such as `encoder_layer_.*/normalization`."""
    over_steps: int = Field(ge=1)
    """Optimizer steps from one end to the other."""

    def __str__(self) -> str:
        return f"{self.layers} over {self.over_steps:,} steps"


class TickSettings(Settings):
    """One moment of the timeline, and the changes that count from the next optimizer step on."""

    at_step: int | None = Field(default=None, ge=0)
    """Optimizer steps done."""
    at_epoch: int | None = Field(default=None, ge=0)
    """Epochs done."""
    at_share: float | None = Field(default=None, ge=0, lt=1)
    """Share of all optimizer steps."""
    when_plateau: PlateauSettings | None = None
    freeze: PathPattern | None = None
    """Regular expression, found anywhere in a variable's path; what it matches is trained no longer. The optimizer
    keeps what it knows of a frozen variable."""
    unfreeze: PathPattern | None = None
    """The opposite of `freeze`."""
    learning_rate_factor: float | None = Field(default=None, gt=0)
    """The learning rate is multiplied by it, from here on."""
    schedule: ScheduleSettings | None = None
    """A new schedule, from the rate of this moment, over the steps that are left."""
    objective: ObjectiveSettings | None = None
    """As `training.objective`: what is minimised from here on."""
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    """As `training.label_smoothing`."""
    augmentation: bool | None = None
    """Whether the list `augmentation` of the recipe is applied from here on; before the first of these ticks it is."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Rate of every dropout layer that has had one."""
    picture_scale: float | None = Field(default=None, gt=0, le=1)
    """Sides of the pictures that the model is trained on, over those that it answers: at 0.75 a step of a network of
    convolutions has 0.56 of the arithmetic. Before the first such tick it is 1."""
    accumulate_batches: int | None = Field(default=None, ge=1)
    """As `training.accumulate_batches`: the effective batch grows. Not with `at_share`, which depends on it."""
    average_decay: float | None = Field(default=None, ge=0, lt=1)
    """As `training.average_decay`; the average begins with the weights of this moment."""
    open_normalization: BlendSettings | None = None
    """From here on g goes from 0 to 1 in (1 - g) x + g norm(x). Before the first such tick a layer that is opened only
    hands its input on, and one that is closed normalizes."""
    close_normalization: BlendSettings | None = None
    """The opposite of `open_normalization`."""

    @property
    def actions(self) -> dict[str, object]:
        """What changes, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in WHEN}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _check(self) -> TickSettings:
        given = [name for name in WHEN if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(WHEN)}, found {' and '.join(given) or 'none'}")
        if not self.actions:
            raise ValueError("changes nothing; name an action such as freeze or learning_rate_factor")
        if self.when_plateau and set(self.actions) != {"learning_rate_factor"}:
            raise ValueError("when_plateau can change learning_rate_factor only; the rest must be known in advance")
        if self.at_share is not None and self.accumulate_batches:
            raise ValueError("accumulate_batches needs at_step or at_epoch: the number of steps depends on it")
        return self
