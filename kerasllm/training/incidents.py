"""What went wrong in a step: the first layer whose output is not finite, and the gradient of each variable."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasllm.training.trainer import Trainer


@contextmanager
def watched_layers(model: keras.Model) -> Iterator[list[dict[str, Any]]]:
    """While it is open, looks at what every layer of a model gives, in eager execution.

    Looked at are `call` and, of layers that are not Keras's own, every public method: some work is done outside of
    `call`, such as the logits of a shared embedding. A layer is looked at when it is done, so after those inside it.

    Yields:
        A list that takes each output that is not finite, in the order of the calls: `layer` (its path, with the method
        if that is not `call`), `not_finite` (elements, NaN or infinite), `inputs_are_finite` and
        `largest_finite_input`, the greatest magnitude in its float inputs, None without any.
    """
    found: list[dict[str, Any]] = []
    watched = [(layer, path, name) for path, layer in _paths(model).items() for name in _methods(type(layer))]
    for layer, path, name in watched:
        layer.__dict__[name] = _watched(getattr(layer, name), path if name == "call" else f"{path}.{name}", found)
    try:
        yield found
    finally:
        for layer, _, name in watched:
            del layer.__dict__[name]


def _paths(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Every layer of a model once, by path; the model itself by its name."""
    paths: dict[str, keras.layers.Layer] = {}

    def walk(layer: keras.layers.Layer, prefix: str) -> None:
        for part in layer._flatten_layers(include_self=False, recursive=False):
            if all(part is not known for known in paths.values()):
                paths[f"{prefix}{part.name}"] = part
                walk(part, f"{prefix}{part.name}/")

    walk(model, "")
    return {**paths, model.name: model}


def _methods(layer_class: type) -> list[str]:
    functions = dict(inspect.getmembers(layer_class, inspect.isfunction))
    own = [name for name, function in functions.items() if function.__module__.partition(".")[0] != "keras"]
    return sorted({"call", *(name for name in own if not name.startswith("_"))})


def _watched(method: Callable, path: str, found: list[dict[str, Any]]) -> Callable:
    @functools.wraps(method)
    def watched(*args, **kwargs):
        output = method(*args, **kwargs)
        floats = _floats(output)
        if floats and not all(np.isfinite(array).all() for array in floats):
            inputs = _floats((args, kwargs))
            greatest = [np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in inputs]
            found.append(
                {
                    "layer": path,
                    "not_finite": int(sum((~np.isfinite(array)).sum() for array in floats)),
                    "inputs_are_finite": all(np.isfinite(array).all() for array in inputs),
                    "largest_finite_input": float(max(greatest)) if greatest else None,
                }
            )
        return output

    return watched


def _floats(structure: Any) -> list[np.ndarray]:
    """The float tensors that have a value, as float32: bfloat16 is no type of NumPy's own."""
    tensors = [each for each in tf.nest.flatten(structure) if isinstance(each, tf.Tensor) and hasattr(each, "numpy")]
    return [tf.cast(each, tf.float32).numpy() for each in tensors if each.dtype.is_floating]


def inspect_step(trainer: Trainer, strategy: tf.distribute.Strategy, elements: Sequence[Any]) -> dict[str, Any]:
    """Goes once more through a step that was not applied, and changes nothing.

    Args:
        trainer: with the weights from before the step.
        elements: for each replica its micro-batches.

    Returns:
        `weights`: paths of those that are not finite; `first_layer`: the first entry of `watched_layers` with finite
        inputs (else the first one at all), None if all outputs are finite; `gradient_norms`: by path, of the whole
        global batch.
    """
    model, step = trainer.model, trainer.optimizer.iterations
    kept = [*model.non_trainable_variables, step]
    values = [np.array(variable.numpy()) for variable in kept]
    batches = strategy.experimental_distribute_values_from_function(
        lambda context: tf.nest.map_structure(tf.constant, elements[context.replica_id_in_sync_group])
    )
    try:
        step.assign(step.numpy() - 1)  # what is dropped follows from it
        with watched_layers(model) as found:
            _, gradients = strategy.run(trainer.gradient_of, args=(batches,))
    finally:
        for variable, value in zip(kept, values, strict=True):
            variable.assign(value)
    norms = [tf.norm(strategy.experimental_local_results(gradient)[0]) for gradient in gradients]
    return {
        "weights": [weight.path for weight in model.weights if not np.isfinite(weight.numpy()).all()],
        "first_layer": next((each for each in found if each["inputs_are_finite"]), found[0] if found else None),
        "gradient_norms": {v.path: float(norm) for v, norm in zip(trainer.trained_variables, norms, strict=True)},
    }
