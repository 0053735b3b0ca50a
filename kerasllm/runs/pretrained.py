"""A recipe that begins with trained weights: their numbers and tokenizer take the places that it leaves open.

They are those of a run of our own, or published ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerasllm.data.published import find_run, read_vocabulary, tokenizer_of_run
from kerasllm.data.settings import TokenizerSettings
from kerasllm.errors import UserError
from kerasllm.models.published.config import has_pooler, read_numbers
from kerasllm.models.settings import BertSettings, FromRunSettings
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import RunDirectory, sha256_of_directory
from kerasllm.runs.pretrained_pictures import complete_picture_recipe, load_picture_weights
from kerasllm.runs.trained_run import heads_of, read_source
from kerasllm.task import Task
from kerasllm.terminal import say
from kerasllm.tuning.settings import AdapterSettings, TuningSettings

if TYPE_CHECKING:
    from kerasllm.data.store import Prepared

SHAPELESS = ("dropout", "attention_dropout", "initializer_stddev")
"""Settings that no trained weight depends on: here the recipe's own count."""


def source_of(recipe: Recipe) -> str | None:
    """The run or the published weights that a recipe names; None without any."""
    return getattr(getattr(recipe, "model", None), "pretrained", None)


def complete_recipe(recipe: Recipe, data_dir: Path | str | None) -> Recipe:
    """The recipe with the numbers and the tokenizer of the weights that it begins with; without any as it is.

    Raises:
        UserError: the weights cannot be found, or the recipe asks for another number or vocabulary than they have; or
            it neither trains nor begins with any.
    """
    if isinstance(getattr(recipe, "model", None), FromRunSettings):
        return complete_picture_recipe(recipe, data_dir)
    source, root = source_of(recipe), Path(data_dir) if data_dir is not None else None
    if source is None:
        if recipe.training.train_steps == 0:
            place = recipe.place("training", "train_steps")
            raise UserError(f"{place}: 0 takes pretrained weights as they are; name them in model.pretrained")
        return recipe
    try:
        run = find_run(source, root)
        trained = numbers_of_run(run) if run else read_numbers(source, root)[1]
    except UserError as error:
        raise UserError(f"{recipe.place('model', 'pretrained')}: {error}") from error
    own: dict[str, Any] = {name: getattr(recipe.model, name) for name in recipe.model.model_fields_set}
    for name, value in own.items():
        theirs = getattr(trained, name, value)
        if name not in SHAPELESS and value != theirs:
            raise UserError(f"{recipe.place('model', name)}: is {value}, and {source} has {theirs}; leave it out")
    model = type(recipe.model)(**{**trained.model_dump(), **own})
    tokenizer = _tokenizer_of_run(recipe, run, source, root) if run else _published_tokenizer(recipe, source, root)
    tuning = _tuning(recipe, source, run is not None or has_pooler(source, root))
    return recipe.model_copy(update={"model": model, "tokenizer": tokenizer, "tuning": tuning})


def numbers_of_run(run: RunDirectory) -> BertSettings:
    """The numbers of the `Bert` that a run has trained, from its recipe. Loads no TensorFlow.

    Raises:
        UserError: it trains another model, or is not at its end.
    """
    recipe = load_recipe(run.recipe_path)
    settings = getattr(recipe, "model", None)
    if not isinstance(settings, BertSettings):
        raise UserError(f"{run.path}: its task, {recipe.task}, trains no Bert; name a run that does")
    try:
        is_finished = "finished" in run.read_manifest()
    except (OSError, ValueError) as error:
        raise UserError(f"{run.manifest_path}: cannot be read ({error}); take it from a copy of the run") from error
    if not is_finished:
        raise UserError(f"{run.path}: is not trained to its end; go on with it by `kerasllm train` first")
    return BertSettings(**{name: getattr(settings, name) for name in BertSettings.model_fields})


def load_pretrained(recipe: Recipe, task: Task, data_dir: Path | str | None) -> list[str]:
    """Gives a new model the weights that its recipe begins with, if it does.

    A head of the task gets weights too, where the source has one of the same kind and shape, and with the same labels.

    Args:
        task: of the recipe, its model built.

    Returns:
        The heads that begin at random, by the names of `models.published.bert.Heads`.

    Raises:
        UserError: the weights cannot be read, or what does not fit, as a table; then nothing was set.
    """
    if isinstance(getattr(recipe, "model", None), FromRunSettings):
        load_picture_weights(recipe, task, data_dir)
        return []
    source = source_of(recipe)
    if source is None:
        return []
    published = read_source(source, Path(data_dir) if data_dir is not None else None)
    heads, labels = heads_of(task)
    found = {name: head for name, head in heads.items() if published.has_head(name, head, labels)}
    published.assign(task.model, found)
    for name in heads:
        say(f"{source}: gives {name}, too" if name in found else f"{source}: has no {name} of this task")
    return [name for name in heads if name not in found]


def take_as_it_is(recipe: Recipe, prepared: Prepared, data_dir: Path | str | None) -> tuple[Any, dict[str, Any]]:
    """The model of a recipe with its pretrained weights alone.

    Returns:
        The model, and its metrics on the validation split; {} without such a split.

    Raises:
        UserError: as `load_pretrained`, or the weights lack a head, which would have to be trained.
    """
    from kerasllm.data.batching import BatchStream
    from kerasllm.runs.evaluation import Evaluator
    from kerasllm.runs.trained_run import build_model, build_task

    task = build_task(recipe, prepared.directory)
    model = build_model(task, recipe)
    if random := load_pretrained(recipe, task, data_dir):
        place = recipe.place("training", "train_steps")
        raise UserError(f"{place}: is 0, but {', '.join(random)} must be trained; raise it")
    if "validation" not in prepared.splits:
        return model, {}
    examples = prepared.examples("validation")
    evaluator = Evaluator(task, model, examples, BatchStream(examples, recipe.batching, recipe.seed))
    return model, evaluator("evaluate")[0]


def _tokenizer_of_run(recipe: Recipe, run: RunDirectory, source: str, root: Path | None) -> TokenizerSettings:
    """That of a run, unless the recipe names one with the same content."""
    theirs = tokenizer_of_run(source, root)
    if "tokenizer" not in recipe.model_fields_set:
        return TokenizerSettings(kind=load_recipe(run.recipe_path).tokenizer.kind, run=source)
    settings, place = recipe.tokenizer, recipe.place("tokenizer")
    if settings.run is not None:
        if sha256_of_directory(tokenizer_of_run(settings.run, root)) != sha256_of_directory(theirs):
            raise UserError(f"{place}.run: {settings.run} has not the tokenizer of {source}; leave it out")
        return settings
    if settings.vocabulary is None:
        raise UserError(f"{place}: the weights of {source} go with its own tokenizer; leave the section out")
    rules = {name: getattr(settings, name) for name in ("lowercase", "strip_accents", "split_chinese")}
    ours, theirs = read_vocabulary(settings.vocabulary, root, rules), read_vocabulary(str(theirs))
    if (ours.tokens, ours.normalization()) != (theirs.tokens, theirs.normalization()):
        raise UserError(f"{place}.vocabulary: {settings.vocabulary} is not the vocabulary of {source}; leave it out")
    return settings


def _tuning(recipe: Recipe, source: str, has_pooler: bool) -> TuningSettings:
    """That of the recipe, which now says whether the pooler is trained: if it begins at random."""
    tuning = recipe.tuning
    if not isinstance(tuning, AdapterSettings) or tuning.train_pooler:
        return tuning
    if not has_pooler and tuning.train_pooler is False:
        raise UserError(f"{recipe.place('tuning', 'train_pooler')}: is false, but {source} has no pooler; leave it out")
    return tuning.model_copy(update={"train_pooler": not has_pooler})


def _published_tokenizer(recipe: Recipe, source: str, root: Path | None) -> TokenizerSettings:
    """That of the published weights, unless the recipe names one with the same tokens."""
    if "tokenizer" not in recipe.model_fields_set:
        return TokenizerSettings(kind="wordpiece", vocabulary=source)
    settings, place = recipe.tokenizer, recipe.place("tokenizer")
    if settings.kind != "wordpiece" or settings.vocabulary is None:
        raise UserError(f"{place}: the weights of {source} go with its own vocabulary; leave the section out")
    if read_vocabulary(settings.vocabulary, root).tokens != read_vocabulary(source, root).tokens:
        raise UserError(f"{place}.vocabulary: {settings.vocabulary} is not the vocabulary of {source}; leave it out")
    return settings
