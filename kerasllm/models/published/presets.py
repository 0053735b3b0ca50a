"""Presets of keras-hub: the numbers and weights of their BertBackbone."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasllm.errors import UserError


def read_preset(name: str) -> tuple[int, dict[str, Any], dict[str, np.ndarray]]:
    """The vocabulary size, the settings, and the weights under the names of Hugging Face.

    Args:
        name: as `from_preset` takes it: a name, a URL of a hub or a directory.

    Raises:
        UserError: there is no such preset, or it is no BERT.
    """
    import keras_nlp

    try:
        backbone = keras_nlp.models.BertBackbone.from_preset(name)
    except Exception as error:  # whatever the download or the files raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"preset:{name}: no weights of BERT can be loaded ({reason})") from error
    config = backbone.get_config()
    kept = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "num_segments")
    numbers = {key: config[key] for key in kept}
    numbers |= {"dropout": config["dropout"], "attention_dropout": config["dropout"], "activation": "gelu_approximate"}
    return config["vocabulary_size"], numbers, _tensors(backbone)


def _tensors(backbone: Any) -> dict[str, np.ndarray]:
    layer = backbone.get_layer
    tensors = {
        "embeddings.word_embeddings.weight": layer("token_embedding").embeddings,
        "embeddings.position_embeddings.weight": layer("position_embedding").position_embeddings,
        "embeddings.token_type_embeddings.weight": layer("segment_embedding").embeddings,
        **_norm(layer("embeddings_layer_norm"), "embeddings.LayerNorm"),
        **_dense(layer("pooled_dense"), "pooler.dense", backbone.hidden_dim),
    }
    for index in range(backbone.num_layers):
        block, at = layer(f"transformer_layer_{index}"), f"encoder.layer.{index}"
        attention = block._self_attention_layer
        for part in ("query", "key", "value"):
            tensors |= _dense(getattr(attention, f"{part}_dense"), f"{at}.attention.self.{part}", backbone.hidden_dim)
        tensors |= _dense(attention.output_dense, f"{at}.attention.output.dense", backbone.hidden_dim)
        tensors |= _norm(block._self_attention_layer_norm, f"{at}.attention.output.LayerNorm")
        tensors |= _dense(block._feedforward_intermediate_dense, f"{at}.intermediate.dense", backbone.intermediate_dim)
        tensors |= _dense(block._feedforward_output_dense, f"{at}.output.dense", backbone.hidden_dim)
        tensors |= _norm(block._feedforward_layer_norm, f"{at}.output.LayerNorm")
    return {name: np.asarray(value, "float32") for name, value in tensors.items()}


def _dense(layer: Any, name: str, units: int) -> dict[str, Any]:
    """Their kernels may have the heads on axes of their own: [D, H, K] or [H, K, D]."""
    kernel = np.asarray(layer.kernel, "float32").reshape(-1, units)
    return {f"{name}.weight": kernel.T, f"{name}.bias": np.asarray(layer.bias, "float32").reshape(-1)}


def _norm(layer: Any, name: str) -> dict[str, Any]:
    return {f"{name}.weight": layer.gamma, f"{name}.bias": layer.beta}
