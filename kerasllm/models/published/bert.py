"""Published weights of BERT, in and out: safetensors in the layout of Hugging Face, and presets of keras-hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kerasllm.data.published import PRESET, SPECIAL_TOKENS, Vocabulary, locate
from kerasllm.errors import UserError
from kerasllm.models.bert import Bert
from kerasllm.models.published.config import ACTIVATIONS, CONFIG_KEYS, read_labels, read_numbers
from kerasllm.models.published.presets import read_preset
from kerasllm.models.published.safetensors_files import read_tensors
from kerasllm.models.settings import BertSettings
from kerasllm.run_directory import atomic_directory
from kerasllm.terminal import say

PREDICTIONS, CLASSIFIER = "cls.predictions", "classifier"
Heads = Mapping[str, keras.layers.Layer]
"""Their name of a head -> our layer: `cls.predictions` (masked language), `cls.seq_relationship` (next sentence),
`classifier` (of sequences or tokens), `qa_outputs` (spans)."""


@dataclass(frozen=True)
class PublishedBert:
    """What was read of a published BERT, before any model is made of it."""

    source: str
    vocabulary_size: int
    settings: BertSettings
    tensors: dict[str, np.ndarray]
    """Their name, without a prefix such as `bert.` -> float32 array."""
    labels: tuple[str, ...] = ()
    """Of the classes of its classifier, if it has one whose classes have names."""

    def build(self, **changes: Any) -> Bert:
        """A model with these weights.

        Args:
            changes: settings that shape no weight, such as `dropout`.

        Raises:
            UserError: a weight is missing, or has another shape than the settings say.
        """
        model = Bert(self.vocabulary_size, **{**self.settings.model_dump(), **changes})
        self.assign(model)
        return model

    def has_head(self, name: str, head: keras.layers.Layer, labels: Sequence[str] = ()) -> bool:
        """Whether there are weights for a head: all of its kind, of the same shapes, and for a classifier its labels.

        Args:
            name: as in `Heads`.
            labels: of the classes, in the order of their numbers.
        """
        if name == CLASSIFIER and tuple(labels) != self.labels:
            return False
        return all(
            len(found := [self.tensors[each] for each in names if each in self.tensors]) == len(names)
            and _joined_shape(variable, found) == tuple(variable.shape)
            for variable, names in _head(name, head)
        )

    def assign(self, model: Bert, heads: Heads | None = None) -> None:
        """Gives a model these weights, after all were found to fit. Without a pooler in the source it stays as it is.

        Args:
            heads: those that get weights too.

        Raises:
            UserError: what does not fit, as a table; then nothing was set.
        """
        values, misfits = [], []
        for variable, names in variables_of(model, heads or {}):
            found = [self.tensors[name] for name in names if name in self.tensors]
            if not found and names[0].startswith("pooler."):
                say(f"{self.source}: has no {names[0]}; it starts at random")
                continue
            shape = _joined_shape(variable, found) if len(found) == len(names) else "nothing"
            if shape != tuple(variable.shape):
                misfits.append(f"  {' + '.join(names)}: the model has {tuple(variable.shape)}, the source has {shape}")
            else:
                values.append((variable, np.concatenate(found)))
        if misfits:
            raise UserError(f"{self.source}: {len(misfits)} weights do not fit the model\n" + "\n".join(misfits))
        for variable, value in values:
            variable.assign(value)


def read_published(source: str, root: Path | None = None) -> PublishedBert:
    """Reads settings and weights; nothing in the files is executed.

    Args:
        source: a directory in the layout of Hugging Face, `hf:OWNER/NAME`, or a preset of keras-hub, `preset:NAME`.
        root: what a path is relative to; the working directory if None.

    Raises:
        UserError: it cannot be read, or is no BERT.
    """
    if source.startswith(PRESET):
        vocabulary_size, numbers, tensors = read_preset(source.removeprefix(PRESET))
        return PublishedBert(source, vocabulary_size, BertSettings(**numbers), tensors)
    vocabulary_size, settings = read_numbers(source, root)
    directory = locate(source, root)
    return PublishedBert(source, vocabulary_size, settings, read_tensors(directory), read_labels(directory))


def published_of(model: Bert, source: str, heads: Heads | None = None, labels: Sequence[str] = ()) -> PublishedBert:
    """The weights of a model as if they had been published: to go on with those of a run, or to write them."""
    tensors = {}
    for variable, names in variables_of(model, heads or {}):
        parts = np.split(np.asarray(variable.value, "float32"), len(names))
        tensors |= dict(zip(names, parts, strict=True))
    return PublishedBert(source, model.vocabulary_size, model.settings, tensors, tuple(labels))


def write_huggingface(
    model: Bert,
    vocabulary: Vocabulary,
    directory: Path,
    architecture: str = "BertModel",
    heads: Heads | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes a directory that `transformers` loads: config.json, model.safetensors, vocab.txt, tokenizer_config.json.

    Args:
        vocabulary: of a `WordpieceTokenizer`, its attribute `vocabulary`.
        directory: must not exist.
        architecture: their name of the class; one with a head needs it in `heads`.
        labels: of the classes of a classifier.

    Raises:
        UserError: the directory exists or cannot be written.
    """
    from safetensors.numpy import save_file

    heads = heads or {}
    config = {
        **{theirs: getattr(model.settings, ours) for ours, theirs in CONFIG_KEYS.items()},
        "hidden_act": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[model.settings.activation],
        "model_type": "bert",
        "architectures": [architecture],
        "vocab_size": model.vocabulary_size,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
    }
    if labels:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    rules = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lowercase,
        "strip_accents": vocabulary.strip_accents,
        "tokenize_chinese_chars": vocabulary.split_chinese,
        "model_max_length": model.max_sequence_length,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    }
    prefix = "" if architecture == "BertModel" else "bert."
    tensors = published_of(model, "", heads).tensors
    own = tuple(f"{head}." for head in heads)
    tensors = {name if name.startswith(own) else prefix + name: value for name, value in tensors.items()}
    with atomic_directory(Path(directory)) as unfinished:
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        (unfinished / "tokenizer_config.json").write_text(json.dumps(rules, indent=2) + "\n", "utf-8")
        (unfinished / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary.tokens), "utf-8")
        save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})


def variables_of(model: Bert, heads: Heads) -> list[tuple[keras.Variable, tuple[str, ...]]]:
    """Each variable of a model and its heads, with the names of the tensors that it is made of, one after the other.

    Both keep kernels as [units, inputs].
    """
    pairs = [
        (model.embedding.table, ("embeddings.word_embeddings.weight",)),
        (model.positions.table, ("embeddings.position_embeddings.weight",)),
        (model.segments.table, ("embeddings.token_type_embeddings.weight",)),
        *_norm(model.embedding_norm, "embeddings.LayerNorm"),
    ]
    for index, block in enumerate(model.blocks):
        at = f"encoder.layer.{index}"
        pairs += _dense(
            block.self_attention.query_key_value, *(f"{at}.attention.self.{name}" for name in ("query", "key", "value"))
        )
        pairs += _dense(block.self_attention.output_projection, f"{at}.attention.output.dense")
        pairs += _norm(block.self_attention_residual.normalization, f"{at}.attention.output.LayerNorm")
        pairs += _dense(block.feed_forward.expand, f"{at}.intermediate.dense")
        pairs += _dense(block.feed_forward.contract, f"{at}.output.dense")
        pairs += _norm(block.feed_forward_residual.normalization, f"{at}.output.LayerNorm")
    pairs += _dense(model.pooler, "pooler.dense")
    return pairs + [pair for name, head in heads.items() for pair in _head(name, head)]


def _head(name: str, head: Any) -> list[tuple[keras.Variable, tuple[str, ...]]]:
    if name != PREDICTIONS:
        return _dense(head.dense, name)
    transform = f"{name}.transform"
    pairs = [*_dense(head.dense, f"{transform}.dense"), *_norm(head.normalization, f"{transform}.LayerNorm")]
    return [*pairs, (head.bias, (f"{name}.bias",))]


def _dense(layer: Any, *names: str) -> list[tuple[keras.Variable, tuple[str, ...]]]:
    return [
        (layer.kernel, tuple(f"{name}.weight" for name in names)),
        (layer.bias, tuple(f"{name}.bias" for name in names)),
    ]


def _norm(layer: Any, name: str) -> list[tuple[keras.Variable, tuple[str, ...]]]:
    return [(layer.scale, (f"{name}.weight",)), (layer.offset, (f"{name}.bias",))]


def _joined_shape(variable: keras.Variable, tensors: list[np.ndarray]) -> tuple[int, ...] | str:
    if len({tensor.shape for tensor in tensors}) > 1 or tensors[0].ndim != len(variable.shape):
        return " + ".join(str(tensor.shape) for tensor in tensors)
    first, *others = tensors[0].shape
    return (first * len(tensors), *others)
