"""The tensors of a published model: one file of safetensors, or several with an index that says which holds what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kerasllm.data.published import WEIGHTS, WEIGHTS_INDEX
from kerasllm.errors import UserError

TOKEN_TABLE = "embeddings.word_embeddings.weight"


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a model, the encoder's without prefix, and with the newer names of the normalizations.

    Args:
        directory: with `model.safetensors`, or without it with `model.safetensors.index.json` and the files that it
            names. Nothing outside of the directory is read, whatever the index says.

    Returns:
        Their name, without a prefix such as `bert.` -> float32 array.

    Raises:
        UserError: a file is missing or damaged, the index names what is no file of the directory, or it is no BERT.
    """
    whole, index = directory / WEIGHTS, directory / WEIGHTS_INDEX
    if whole.is_file() or not index.is_file():
        path, tensors = whole, _read_file(whole)
    else:
        path, tensors = index, {}
        for file, names in _read_index(index).items():
            found = _read_file(directory / file)
            for name in names:
                if name not in found:
                    raise UserError(f"{directory / file}: has no {name}, which {index.name} says; get both again")
                tensors[name] = found[name]
    prefix = next((name.removesuffix(TOKEN_TABLE) for name in tensors if name.endswith(TOKEN_TABLE)), None)
    if prefix is None:
        raise UserError(f"{path}: has no {TOKEN_TABLE}; it holds no BERT")
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return renamed


def tensor_names(directory: Path) -> list[str]:
    """The names that the files of a model give its tensors; [] where there are no files. Reads no tensor.

    Raises:
        UserError: a file is damaged, or one that the index names is missing.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        index = directory / WEIGHTS_INDEX
        return [name for names in _read_index(index).values() for name in names] if index.is_file() else []
    with _opened(path) as file:
        return list(file.keys())


def _read_index(path: Path) -> dict[str, list[str]]:
    """The names of the files, each with those of its tensors; all files were found to be there."""
    try:
        files = json.loads(path.read_bytes())["weight_map"]
        by_file: dict[str, list[str]] = {}
        for name, file in files.items():
            by_file.setdefault(str(file), []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); get it again") from error
    for file in by_file:
        if not file.endswith(".safetensors") or set(file) & set("/\\:\0"):
            raise UserError(f"{path}: names {file!r}, which is no safetensors file beside it; get the index again")
    missing = [file for file in by_file if not (path.parent / file).is_file()]
    if missing:
        lacking = f"{len(missing)} of its {len(by_file)} files: {', '.join(missing)}"
        raise UserError(f"{path}: lacks {lacking}; get them again")
    return by_file


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: does not exist; weights in other formats are to be saved as safetensors first")
    with _opened(path) as file:
        return {name: file.get_tensor(name).astype("float32") for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of safetensors; what goes wrong in the block is an error that names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
