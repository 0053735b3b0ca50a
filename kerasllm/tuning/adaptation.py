"""Makes a built model one that is adapted as its recipe says: freezes variables, adds what is learnt in their place.

`adapt` when the model is built; `begin` once it has its published weights; `merge` when it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import keras
import numpy as np
import tensorflow as tf

from kerasllm.errors import UserError
from kerasllm.layers.attention import SelfAttention
from kerasllm.layers.projection import Projection
from kerasllm.training.variable_paths import matches_of
from kerasllm.tuning.low_rank import LowRank
from kerasllm.tuning.prompts import Prefix, Prompt
from kerasllm.tuning.settings import AdapterSettings, LoraSettings, PrefixSettings, PromptSettings, TuningSettings
from kerasllm.tuning.trained_variables import trained_variables


def adapt(model: keras.Model, settings: TuningSettings) -> None:
    """Freezes what is not trained, and adds what an adapter learns; a model that is trained in full stays as it is.

    Adapters are made last, so the heads begin as they would without them.

    Args:
        model: built, with its heads.

    Raises:
        UserError: a setting does not fit the model; it begins with the key.
    """
    if settings.name == "full":
        return
    variables = model.trainable_variables
    paths = [variable.path.removeprefix(f"{model.name}/") for variable in variables]
    trained = trained_variables(settings, paths)
    for path, variable in zip(paths, variables, strict=True):
        variable.trainable = path in trained
    if isinstance(settings, LoraSettings):
        model.lora = _add_low_rank(model, settings)
    elif isinstance(settings, AdapterSettings):
        _check_takes_prompts(model, settings)
        if isinstance(settings, PromptSettings):
            model.prompt = Prompt(settings.num_tokens, model.hidden_dim, name="prompt")
        else:
            model.prefixes = _add_prefixes(model, settings)


def begin(model: keras.Model, seed: int) -> None:
    """Gives prompts and prefixes their first values, which they take from the weights of the model.

    A prompt begins as the vectors of tokens that are drawn at random (Lester et al., section 3.2); prefixes as the keys
    and values that a sequence of such tokens has in each layer (Li and Liang, section 7.4). A model without any stays
    as it is.

    Args:
        model: from `adapt`, with the weights that it begins with.
        seed: of the draw.
    """
    prompt, prefixes = getattr(model, "prompt", None), getattr(model, "prefixes", ())
    if prompt is None and not prefixes:
        return
    count = prompt.vectors.shape[0] if prompt is not None else prefixes[0].keys.shape[1]
    tokens = np.random.default_rng(seed).integers(1, model.vocabulary_size, size=count)
    if prompt is not None:
        prompt.vectors.assign(tf.gather(tf.convert_to_tensor(model.embedding.table), tokens))
        return
    attentions = _attentions_of(model)
    for attention, prefix in zip(attentions, prefixes, strict=True):
        attention.prefix = prefix.take
    sequence = tf.constant(tokens[np.newaxis], tf.int32)
    model({"token_ids": sequence, "segment_ids": tf.zeros_like(sequence)}, training=False)
    for attention, prefix in zip(attentions, prefixes, strict=True):
        attention.prefix = prefix.put_in_front


def merge(model: keras.Model) -> None:
    """Adds what LoRA has learnt to the kernels, so that nothing of it is left; any other model stays as it is."""
    for addition in getattr(model, "lora", ()):
        projection = addition.projection()
        projection.kernel.assign(addition.merged_kernel())
        projection.adapter = None
    if hasattr(model, "lora"):
        model.lora.clear()


def _add_low_rank(model: keras.Model, settings: LoraSettings) -> list[LowRank]:
    """Lets each projection that matches and is frozen compute with an addition; returns the layers of these."""
    candidates = [
        (_path_of_part(layer, model, part), layer, place)
        for layer in model._flatten_layers()
        if isinstance(layer, Projection) and not layer.kernel.trainable
        for place, part in enumerate(layer.parts or ("",))
    ]
    try:
        found = matches_of(settings.projections, [path for path, _, _ in candidates], "frozen projection")
    except UserError as error:
        raise UserError(f"projections: {error}") from error
    places: dict[int, tuple[Projection, list[int]]] = {}
    for (_, layer, place), matches in zip(candidates, found, strict=True):
        if matches:
            places.setdefault(id(layer), (layer, []))[1].append(place)
    additions = []
    for layer, chosen in places.values():
        with _scopes("lora", *layer.path.removeprefix(f"{model.name}/").split("/")[:-1]):
            addition = LowRank(layer, chosen, settings.rank, settings.alpha, settings.dropout, name=layer.name)
        layer.adapter = addition.__call__  # a method: the layer itself would become part of the projection
        additions.append(addition)
    return additions


def _path_of_part(layer: Projection, model: keras.Model, part: str) -> str:
    """`layer_0/self_attention/query` for a part of `layer_0/self_attention/query_key_value`, without one its path."""
    path = layer.path.removeprefix(f"{model.name}/")
    return f"{path.rpartition('/')[0]}/{part}".removeprefix("/") if part else path


def _check_takes_prompts(model: keras.Model, settings: AdapterSettings) -> None:
    if not hasattr(model, "prompt"):
        raise UserError(f"name: {type(model).__name__} takes no {settings.name}; a Bert does, and any model lora")
    if settings.num_tokens > model.max_sequence_length:
        raise UserError(f"num_tokens: {settings.num_tokens} is more than the {model.max_sequence_length} positions")


def _add_prefixes(model: keras.Model, settings: PrefixSettings) -> list[Prefix]:
    prefixes = []
    for attention in _attentions_of(model):
        heads = attention.heads
        with _scopes("prefix", *attention.path.removeprefix(f"{model.name}/").split("/")[:-1]):
            prefix = Prefix(settings.num_tokens, heads.num_heads, heads.key_dim, name=attention.name)
        attention.prefix = prefix.put_in_front
        prefixes.append(prefix)
    return prefixes


def _attentions_of(model: keras.Model) -> list[SelfAttention]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, SelfAttention)]


@contextmanager
def _scopes(*names: str) -> Iterator[None]:
    """Variables made in the block have these names before their own in their path."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(keras.name_scope(name))
        yield
