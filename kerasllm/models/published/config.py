"""The numbers of a published BERT, from its config.json. Loads no TensorFlow, but for a preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kerasllm.data.published import PRESET, locate
from kerasllm.errors import UserError
from kerasllm.models.published.safetensors_files import tensor_names
from kerasllm.models.settings import BertSettings

CONFIG_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "epsilon": "layer_norm_eps",
    "initializer_stddev": "initializer_range",
}
"""Our name -> theirs."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Their name -> ours."""


def read_numbers(source: str, root: Path | None = None) -> tuple[int, BertSettings]:
    """The vocabulary size and the settings of a published model.

    Args:
        source: as in `read_published`.
        root: what a path is relative to; the working directory if None.

    Raises:
        UserError: they cannot be read, or it is no BERT.
    """
    if source.startswith(PRESET):
        from kerasllm.models.published.presets import read_preset

        vocabulary_size, numbers, _ = read_preset(source.removeprefix(PRESET))
        return vocabulary_size, BertSettings(**numbers)
    path = locate(source, root) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return config.get("vocab_size", 0), _read_settings(config, path)


def read_labels(directory: Path) -> tuple[str, ...]:
    """The labels of a classifier in the order of their numbers, as its config.json names them; () without names."""
    config = json.loads((directory / "config.json").read_bytes())
    names = config.get("id2label") or {}
    return tuple(str(names[number]) for number in sorted(names, key=int))


def has_pooler(source: str, root: Path | None = None) -> bool:
    """Whether a published model has weights for the pooler, which some come without; arguments as for `read_numbers`.

    Where there are no weights to be looked at, it is taken to have them; reading them will say what is wrong.
    """
    names = [] if source.startswith(PRESET) else tensor_names(locate(source, root))
    return not names or any(name.endswith("pooler.dense.weight") for name in names)


def _read_settings(config: dict[str, Any], path: Path) -> BertSettings:
    """The settings that a config.json says; what it leaves out has their defaults, which are ours."""
    expected = {"model_type": "bert", "position_embedding_type": "absolute", "is_decoder": False, "pad_token_id": 0}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key} is {config[key]!r}, but only {value!r} can be loaded into a Bert")
    numbers = {ours: config[theirs] for ours, theirs in CONFIG_KEYS.items() if theirs in config}
    activation = numbers.get("activation", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: hidden_act is {activation!r}, but only {', '.join(ACTIVATIONS)} can be loaded")
    if "vocab_size" not in config:
        raise UserError(f"{path}: has no vocab_size")
    try:
        return BertSettings(**{**numbers, "activation": ACTIVATIONS[activation]})
    except ValueError as error:
        raise UserError(f"{path}: {str(error).splitlines()[-2].strip()}") from error
