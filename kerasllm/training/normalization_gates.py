"""How far gated layers of normalization are open: a function of the timeline and the step alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training.tick_settings import BlendSettings, TickSettings
from kerasllm.training.ticks import Tick
from kerasllm.training.variable_paths import matches_of

TARGETS = {"open_normalization": 1.0, "close_normalization": 0.0}


@dataclass(frozen=True)
class Ramp:
    """A gate goes to `target` in `over_steps` optimizer steps, from where it is after `start` of them."""

    start: int
    over_steps: int
    target: float


class Gate:
    r"""The value of one gate at each step, from ramp to ramp.

    $$g(t) = (1 - a)\, g(s) + a\, T, \quad a = \min(1, (t - s) / N)$$

    for a ramp to T that begins at s and takes N steps; before the first one, 1 - T of that. It ends at T exactly.

    Args:
        variable: of the layer.
        ramps: at least one, in the order of their steps. One that has not ended goes on from its value of the moment.
    """

    def __init__(self, variable: keras.Variable, ramps: Sequence[Ramp]):
        self.variable, self.ramps = variable, ramps
        self._begins = [1.0 - ramps[0].target]
        for ramp, following in itertools.pairwise(ramps):
            share = min(1.0, (following.start - ramp.start) / ramp.over_steps)
            self._begins.append((1.0 - share) * self._begins[-1] + share * ramp.target)

    def at(self, step: tf.Tensor) -> tf.Tensor:
        """float32 scalar: the value after `step` optimizer steps, int64 scalar."""
        value = tf.constant(self._begins[0], tf.float32)
        for ramp, begin in zip(self.ramps, self._begins, strict=True):
            share = tf.minimum(1.0, tf.cast(step - ramp.start, tf.float32) / ramp.over_steps)
            value = tf.where(step >= ramp.start, (1.0 - share) * begin + share * ramp.target, value)
        return value

    def set(self, step: tf.Tensor) -> None:
        """Sets the variable to the value after `step` optimizer steps."""
        self.variable.assign(self.at(step))


def gated_layers(ticks: Sequence[TickSettings]) -> list[str]:
    """The patterns of all layers that a timeline blends in or out, for `gated_normalization`."""
    return [blend.layers for tick in ticks for _, blend in _blends(tick)]


def build_gates(model: keras.Model, ticks: Sequence[Tick], total_steps: int) -> list[Gate]:
    """The gates of a model that was built with those of `gated_layers`, each set to its value before the first step.

    Raises:
        UserError: a pattern matches no layer that could have a gate, a layer is opened and closed at one moment, or a
            ramp does not end with the training.
    """
    layers = {
        layer.path.removeprefix(f"{model.name}/"): layer
        for layer in model._flatten_layers()
        if hasattr(layer, "normalization_gate")
    }
    ramps: dict[str, list[Ramp]] = {}
    for tick in ticks:
        for name, blend in _blends(tick.settings):
            place = f"{tick.place}.{name}"
            if blend.over_steps > total_steps - tick.step:
                left = f"{total_steps - tick.step:,} steps that are left"
                raise UserError(f"{place}.over_steps: {blend.over_steps:,} is more than the {left}; shorten it")
            for path in _matching(blend.layers, list(layers), place):
                before = ramps.setdefault(path, [])
                if before and before[-1].start == tick.step:
                    raise UserError(f"{place}: {path} is blended by two ticks at step {tick.step:,}")
                before.append(Ramp(tick.step, blend.over_steps, TARGETS[name]))
    gates = [Gate(layers[path].normalization_gate, found) for path, found in ramps.items()]
    for gate in gates:
        gate.set(tf.constant(0, tf.int64))
    return gates


def _blends(tick: TickSettings) -> list[tuple[str, BlendSettings]]:
    return [(name, getattr(tick, name)) for name in TARGETS if getattr(tick, name) is not None]


def _matching(pattern: str, paths: list[str], place: str) -> list[str]:
    try:
        found = matches_of(pattern, paths, "layer of normalization")
    except UserError as error:
        raise UserError(f"{place}.layers: {error}") from error
    return [path for path, matches in zip(paths, found, strict=True) if matches]
