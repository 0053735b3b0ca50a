"""A recipe that begins with published weights: their numbers and vocabulary take the places that it leaves open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerasllm.data.published import read_vocabulary
from kerasllm.data.settings import TokenizerSettings
from kerasllm.errors import UserError
from kerasllm.models.published.config import has_pooler, read_numbers
from kerasllm.recipe import Recipe
from kerasllm.tuning.settings import AdapterSettings, TuningSettings

SHAPELESS = ("pretrained", "dropout", "attention_dropout", "initializer_stddev")
"""Settings that no published weight depends on: here the recipe's own count."""


def source_of(recipe: Recipe) -> str | None:
    """The published weights that a recipe names; None without any."""
    return getattr(getattr(recipe, "model", None), "pretrained", None)


def complete_recipe(recipe: Recipe, data_dir: Path | str | None) -> Recipe:
    """The recipe with the numbers and the tokenizer of its published weights; without any as it is.

    Raises:
        UserError: the weights cannot be found, or the recipe asks for another number or vocabulary than they have.
    """
    source, root = source_of(recipe), Path(data_dir) if data_dir is not None else None
    if source is None:
        return recipe
    try:
        _, published = read_numbers(source, root)
    except UserError as error:
        raise UserError(f"{recipe.place('model', 'pretrained')}: {error}") from error
    own: dict[str, Any] = {name: getattr(recipe.model, name) for name in recipe.model.model_fields_set}
    for name, value in own.items():
        if name not in SHAPELESS and value != getattr(published, name):
            theirs = getattr(published, name)
            raise UserError(f"{recipe.place('model', name)}: is {value}, and {source} has {theirs}; leave it out")
    model = type(recipe.model)(**{**published.model_dump(), **own})
    changes = {"model": model, "tokenizer": _tokenizer(recipe, source, root)}
    return recipe.model_copy(update={**changes, "tuning": _tuning(recipe, source, root)})


def load_published(recipe: Recipe, model: Any, data_dir: Path | str | None) -> None:
    """Gives a new model the weights that its recipe begins with, if it does; its head begins at random.

    Raises:
        UserError: what does not fit, as a table; then nothing was set.
    """
    source = source_of(recipe)
    if source is not None:
        from kerasllm.models.published.bert import read_published

        read_published(source, Path(data_dir) if data_dir is not None else None).assign(model)


def _tuning(recipe: Recipe, source: str, root: Path | None) -> TuningSettings:
    """That of the recipe, which now says whether the pooler is trained: if it begins at random."""
    tuning = recipe.tuning
    if not isinstance(tuning, AdapterSettings) or tuning.train_pooler:
        return tuning
    begins_at_random = not has_pooler(source, root)
    if begins_at_random and tuning.train_pooler is False:
        raise UserError(f"{recipe.place('tuning', 'train_pooler')}: is false, but {source} has no pooler; leave it out")
    return tuning.model_copy(update={"train_pooler": begins_at_random})


def _tokenizer(recipe: Recipe, source: str, root: Path | None) -> TokenizerSettings:
    """That of the published weights, unless the recipe names one with the same tokens."""
    if "tokenizer" not in recipe.model_fields_set:
        return TokenizerSettings(kind="wordpiece", vocabulary=source)
    settings, place = recipe.tokenizer, recipe.place("tokenizer")
    if settings.kind != "wordpiece" or settings.vocabulary is None:
        raise UserError(f"{place}: the weights of {source} go with its own vocabulary; leave the section out")
    if read_vocabulary(settings.vocabulary, root).tokens != read_vocabulary(source, root).tokens:
        raise UserError(f"{place}.vocabulary: {settings.vocabulary} is not the vocabulary of {source}; leave it out")
    return settings
