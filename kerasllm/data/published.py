"""Where published models lie, and the WordPiece vocabularies that come with them. Loads no TensorFlow for files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kerasllm.errors import UserError
from kerasllm.run_directory import RunDirectory

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HUB, PRESET = "hf:", "preset:"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
"""All weights in one file, or the names of several files that hold a part of them each."""
SHARDS = "model-*-of-*.safetensors"
HUB_FILES = ("config.json", WEIGHTS, WEIGHTS_INDEX, SHARDS, "vocab.txt", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of WordPiece in the order of their ids, and how texts are normalised before they are looked up."""

    tokens: tuple[str, ...]
    lowercase: bool = True
    strip_accents: bool | None = None
    """None: if texts are turned to lower case."""
    split_chinese: bool = True

    def normalization(self) -> dict[str, bool]:
        """Nothing left open."""
        strip_accents = self.lowercase if self.strip_accents is None else self.strip_accents
        return {"lowercase": self.lowercase, "strip_accents": strip_accents, "split_chinese": self.split_chinese}


def locate(source: str, root: Path | None = None) -> Path:
    """The file or directory of a published model; from the hub it is downloaded first, weights and settings alone.

    Args:
        source: a path, or `hf:OWNER/NAME`.
        root: what a path is relative to; where nothing is there, or if None, it is the working directory.

    Raises:
        UserError: there is nothing, or it cannot be downloaded.
    """
    if not source.startswith(HUB):
        path = (root or Path()) / source
        if path.exists():
            return path
        if not Path(source).exists():
            raise UserError(f"{path}: does not exist; name a path, {HUB}OWNER/NAME or {PRESET}NAME")
        return Path(source)
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{source}: needs huggingface_hub; install it with `pip install kerasllm[hub]`") from error
    try:
        return Path(huggingface_hub.snapshot_download(source.removeprefix(HUB), allow_patterns=list(HUB_FILES)))
    except Exception as error:  # of its many kinds, each says what is wrong in its first line
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be downloaded ({reason}); check the name and the connection") from error


def find_run(source: str, root: Path | None = None) -> RunDirectory | None:
    """The run of our own that a source names: a path that holds `recipe.yaml` and `manifest.json`. None for others.

    Raises:
        UserError: there is nothing at the path.
    """
    if source.startswith((HUB, PRESET)):
        return None
    run = RunDirectory(locate(source, root))
    return run if run.exists() and run.manifest_path.is_file() else None


def tokenizer_of_run(source: str, root: Path | None = None) -> Path:
    """Where the tokenizer of a run lies.

    Raises:
        UserError: the source is no run, or has no tokenizer.
    """
    run = find_run(source, root)
    if run is None:
        raise UserError(f"{source}: holds no run; name a directory with recipe.yaml and manifest.json")
    if not run.tokenizer_path.is_dir():
        raise UserError(f"{run.path}: has no tokenizer; name a run of a task that reads text")
    return run.tokenizer_path


def read_vocabulary(
    source: str, root: Path | None = None, rules: Mapping[str, bool | None] | None = None
) -> Vocabulary:
    """The vocabulary of a published model.

    Args:
        source: a file with one token a line, a directory in the layout of Hugging Face or as `prepare` writes it,
            `hf:OWNER/NAME` or `preset:NAME`.
        root: what a path is relative to.
        rules: how texts are normalised, where a file with tokens alone does not say it; as `Vocabulary` does if None.

    Raises:
        UserError: it cannot be read, or is no vocabulary of BERT's kind.
    """
    if source.startswith(PRESET):
        return _checked(_read_preset(source), source)
    path = locate(source, root)
    try:
        found = _read_directory(path) if path.is_dir() else Vocabulary(_read_lines(path), **(rules or {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no WordPiece vocabulary that can be read ({error!r})") from error
    return _checked(found, str(path))


def fingerprint(source: str, root: Path | None = None) -> str:
    """A hexadecimal hash that changes with the vocabulary; for a preset, with its name."""
    if source.startswith(PRESET):
        return source
    vocabulary = read_vocabulary(source, root)
    return hashlib.sha256(repr(vocabulary).encode("utf-8", "surrogatepass")).hexdigest()


def _read_lines(path: Path) -> tuple[str, ...]:
    lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    return tuple(line.rstrip() for line in lines)


def _read_directory(path: Path) -> Vocabulary:
    """`tokenizer.json` says everything; older models have `vocab.txt` and `tokenizer_config.json`."""
    whole = json.loads((path / "tokenizer.json").read_bytes()) if (path / "tokenizer.json").exists() else {}
    if "kind" in whole:  # our own
        if whole["kind"] != "wordpiece":
            raise ValueError(f"its kind is {whole['kind']}")
        return Vocabulary(_read_lines(path / whole["file"]), **whole["normalization"])
    if whole:
        if whole["model"].get("type", "WordPiece") != "WordPiece":
            raise ValueError(f"its kind is {whole['model']['type']}")
        ids = {**whole["model"]["vocab"], **{token["content"]: token["id"] for token in whole.get("added_tokens", [])}}
        tokens = [""] * (max(ids.values()) + 1)
        for token, index in ids.items():
            tokens[index] = token
        rules = whole["normalizer"]
        return Vocabulary(tuple(tokens), rules["lowercase"], rules["strip_accents"], rules["handle_chinese_chars"])
    config = path / "tokenizer_config.json"
    rules = json.loads(config.read_bytes()) if config.exists() else {}
    return Vocabulary(
        _read_lines(path / "vocab.txt"),
        rules.get("do_lower_case", True),
        rules.get("strip_accents"),
        rules.get("tokenize_chinese_chars", True),
    )


def _read_preset(source: str) -> Vocabulary:
    import keras_nlp

    try:
        tokenizer = keras_nlp.models.BertTokenizer.from_preset(source.removeprefix(PRESET))
    except Exception as error:  # whatever the download or the files raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: no tokenizer of BERT can be loaded ({reason})") from error
    return Vocabulary(
        tuple(tokenizer.get_vocabulary()), tokenizer.lowercase, tokenizer.strip_accents, tokenizer.split_on_cjk
    )


def _checked(vocabulary: Vocabulary, source: str) -> Vocabulary:
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary.tokens]
    if missing:
        raise UserError(f"{source}: the vocabulary has no {', '.join(missing)}; it is not one of BERT's")
    if vocabulary.tokens[0] != "[PAD]":
        raise UserError(f"{source}: token 0 is {vocabulary.tokens[0]!r}, but must be [PAD]: 0 is padding everywhere")
    return vocabulary
