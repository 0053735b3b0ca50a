"""Keras's optimizers by name, with a rate and a weight decay of its own for each variable; L1 and L2 penalties."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.training.optimizer_settings import OptimizerSettings, PatternSettings
from kerasllm.training.variable_paths import is_bias_or_norm, layer_decay_factors, matches_of


class Condition(threading.local):
    """Whether the step counts that is being applied: of this thread, since each replica traces in its own."""

    def __init__(self) -> None:
        self.applies: tf.Tensor | None = None


class PerVariable:
    r"""Put before a Keras optimizer class, it gives each variable a learning rate and a weight decay of its own.

    A variable w with rate factor f and decay d takes, at the scheduled rate r, the step of the optimizer at the rate
    $f r$ from $(1 - d f r)\, w$. With f = 1 and the same d everywhere that is what Keras does.

    Args:
        rate_factors: one for each variable that the optimizer will be built with, in their order.
        weight_decays: likewise.
        arguments: of the Keras class.
    """

    def __init__(self, rate_factors: Sequence[float], weight_decays: Sequence[float], **arguments: Any):
        super().__init__(**arguments)
        self.rate_factors, self.weight_decays = tuple(rate_factors), tuple(weight_decays)
        self._condition = Condition()

    def apply_if(self, applies: tf.Tensor, gradients: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
        """`apply` where `applies` is true; else nothing changes but `iterations`, which counts either way.

        Args:
            applies: bool scalar, the same on every replica.
        """
        self._condition.applies = applies
        try:
            self.apply(gradients, variables)
        finally:
            self._condition.applies = None

    def _backend_update_step(self, gradients, variables, learning_rate) -> None:
        """Keras goes from here to all replicas together, which it cannot do inside a `tf.cond`; so the condition goes
        with the learning rate to where each variable is updated."""
        if self._condition.applies is not None:
            learning_rate = (learning_rate, self._condition.applies)
        super()._backend_update_step(gradients, variables, learning_rate)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate) -> None:
        """Decay and step of one variable; Keras calls it on every replica with the summed gradient.

        Args:
            learning_rate: a scalar; or a pair of it and a bool scalar, without which nothing is done.
        """
        if not isinstance(learning_rate, tuple):
            return self._update(gradient, variable, learning_rate)
        rate, applies = learning_rate

        def update() -> tf.Tensor:
            self._update(gradient, variable, rate)
            return tf.constant(True)

        tf.cond(applies, update, lambda: tf.constant(False))

    def _update(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        factor, decay = self.rate_factors[index], self.weight_decays[index]
        rate = learning_rate if factor == 1.0 else learning_rate * factor
        if decay:
            self.assign(variable, variable * (1.0 - decay * tf.cast(rate, variable.dtype)))
        super().update_step(gradient, variable, rate)

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Keras's own decay, the same for all; `update_step` has taken its place."""


class FusedAdam:
    r"""Put before Keras's `Adam` or `AdamW`, it takes the same step in a single operation.

    Keras writes it as a dozen operations, each of which goes through memory once. With a small batch and a large
    vocabulary, as in fine-tuning, that is a good part of a step's time.

    $$m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) g^2, \quad
    w = w - r \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m}{\sqrt{v} + \epsilon}$$

    Reference: [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980), the form before their section 2.1.
    """

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """The step of one replica's copy of a variable at step t, the number of steps taken before plus one."""
        dtype, index = variable.dtype, self._get_variable_index(variable)
        step = tf.cast(self.iterations.value + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(self.beta_1, dtype) ** step,
            beta2_power=tf.cast(self.beta_2, dtype) ** step,
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


def first_patterns(settings: OptimizerSettings, paths: Sequence[str]) -> list[PatternSettings]:
    """For each variable the first pattern that matches it, or one that changes nothing.

    Raises:
        UserError: a pattern matches no variable; it begins with the setting's key.
    """
    first: list[PatternSettings | None] = [None] * len(paths)
    for number, pattern in enumerate(settings.patterns):
        try:
            matches = matches_of(pattern.match, paths)
        except UserError as error:
            raise UserError(f"patterns[{number}].match: {error}") from error
        first = [pattern if found and before is None else before for found, before in zip(matches, first, strict=True)]
    return [pattern or PatternSettings(match="") for pattern in first]


def rate_factors(settings: OptimizerSettings, paths: Sequence[str]) -> list[float]:
    """What the scheduled rate is multiplied by for each variable: its layer decay times its pattern's factor.

    Raises:
        UserError: there are no layers to decay over, or a pattern matches nothing; it begins with the setting's key.
    """
    factors = [pattern.learning_rate_factor for pattern in first_patterns(settings, paths)]
    if settings.layer_decay is None:
        return factors
    try:
        of_layers = layer_decay_factors(paths, settings.layer_decay)
    except UserError as error:
        raise UserError(f"layer_decay: {error}") from error
    return [factor * of_layer for factor, of_layer in zip(factors, of_layers, strict=True)]


def weight_decays(settings: OptimizerSettings, paths: Sequence[str]) -> list[float]:
    """The decay of each variable: its pattern's, else 0 for biases and norms, else the optimizer's.

    Raises:
        UserError: a pattern matches nothing; it begins with the setting's key.
    """
    given = [pattern.weight_decay for pattern in first_patterns(settings, paths)]
    default = [0.0 if is_bias_or_norm(path) else settings.weight_decay for path in paths]
    return [own if decay is None else decay for own, decay in zip(default, given, strict=True)]


def build_optimizer(
    settings: OptimizerSettings,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    variables: Sequence[keras.Variable],
) -> keras.optimizers.Optimizer:
    """The Keras optimizer that a recipe names, built; call it inside the strategy's scope.

    Args:
        settings: the section `training.optimizer`.
        learning_rate: a number or a Keras schedule.
        variables: all that may ever be trained, those that are frozen at first too.

    Raises:
        UserError: a setting fits no variable; it begins with the key, `patterns[0].match: ...`.
    """
    paths = [variable.path for variable in variables]
    keras_class = getattr(keras.optimizers, settings.keras_class)
    is_adam = issubclass(keras_class, keras.optimizers.Adam) and not settings.amsgrad
    classes = (PerVariable, FusedAdam, keras_class) if is_adam else (PerVariable, keras_class)
    # Of the same name, because Keras calls the optimizer's variables after its class.
    optimizer = type(keras_class.__name__, classes, {})(
        rate_factors(settings, paths),
        weight_decays(settings, paths),
        learning_rate=learning_rate,
        **settings.keras_arguments,
    )
    optimizer.build(list(variables))
    return optimizer


def add_penalty_gradients(
    gradients: Sequence[tf.Tensor], variables: Sequence[keras.Variable], l1: float, l2: float
) -> list[tf.Tensor]:
    r"""Adds to each gradient that of the penalties on kernels and tables; biases and norms have none.

    $$\lambda_1 \sum |w| + \frac{\lambda_2}{2} \sum w^2, \quad \partial w = \lambda_1 \mathrm{sign}(w) + \lambda_2 w$$

    Add them once, to the gradient summed over replicas and micro-batches, before clipping. Unlike decoupled weight
    decay they go through the optimizer, where adaptive ones scale them with the rest.

    Args:
        gradients: of the loss, dense, one per variable.
        variables: those of the gradients, in the same order.
        l1: lambda 1; with both 0 the gradients come back as they are.
        l2: lambda 2.

    References: [Tibshirani, 1996](https://doi.org/10.1111/j.2517-6161.1996.tb02080.x) for L1;
    [Krogh and Hertz, 1991](https://papers.nips.cc/paper/563) for L2.
    """
    penalised = []
    for gradient, variable in zip(gradients, variables, strict=True):
        if not is_bias_or_norm(variable.path):
            weights = tf.cast(tf.convert_to_tensor(variable.value), gradient.dtype)
            gradient = gradient + l1 * tf.sign(weights) if l1 else gradient
            gradient = gradient + l2 * weights if l2 else gradient
        penalised.append(gradient)
    return penalised
