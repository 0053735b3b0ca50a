"""A recipe file -> one validated object. Defaults < recipe < `--set`. Loads no TensorFlow.

A recipe is settings only, one section per part of the walk:

    # Translates dates to ISO 8601.                 <- the header: purpose, then `key: value` lines
    # command: kerasllm train translate/dates_tiny --run-dir runs/dates
    task: translate                                 <- kerasllm/tasks/translate.py, which names the sections `model` ...
    seed: 1
    data: {source: built_in, name: dates, train: 60000}
    model: {num_layers: 2}
    training: {train_epochs: 3}
"""

from __future__ import annotations

import importlib
import io
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
from ruamel.yaml import YAML

import kerasllm.tasks
from kerasllm.data.settings import AugmentationSettings, BatchingSettings, CleaningSettings, TokenizerSettings
from kerasllm.data.source_settings import DataSettings
from kerasllm.errors import UserError, did_you_mean
from kerasllm.run_directory import atomic_write_bytes
from kerasllm.settings import Document, Settings, apply_overrides, build_settings, load_document
from kerasllm.training.settings import TrainingSettings
from kerasllm.training.tick_settings import TickSettings
from kerasllm.tuning.settings import FullSettings, TuningSettings

INSTALLED, CHECKOUT = (folder / "recipes" for folder in Path(__file__).parents[:2])
RECIPES = INSTALLED if INSTALLED.is_dir() else CHECKOUT


class Recipe(Settings):
    """All that a run depends on besides the data files. A task adds its own sections, such as `model`."""

    name: str
    """As `kerasllm recipes` lists it; by default the file's place: `<task>/<dataset>_<size>`."""
    task: str
    """File name in `kerasllm/tasks`."""
    seed: int = pydantic.Field(default=0, ge=0)
    data: DataSettings
    cleaning: CleaningSettings = CleaningSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    batching: BatchingSettings = BatchingSettings()
    augmentation: tuple[AugmentationSettings, ...] = ()
    """What changes training examples, one after the other, in each epoch in another way."""
    tuning: TuningSettings = FullSettings()
    """How the model is adapted, by name: see `tuning/settings.py`."""
    training: TrainingSettings
    ticks: tuple[TickSettings, ...] = ()
    """The timeline of the training: when something changes, and what."""

    _document: Document = pydantic.PrivateAttr(default=Document(Path(), {}))

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self._document.path

    def place(self, *keys: str | int) -> str:
        """Where a key stands, as an error begins: `file:line: section.key`."""
        return self._document.place(keys)

    @property
    def task_class(self) -> Any:
        """The class that the task's file defines."""
        return _import_task(self.task)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is measured on a split: the loss, and the metrics of the task."""
        return ("loss", *self.task_class.metric_names_of(self))

    def dump(self) -> dict[str, Any]:
        """Returns all settings, defaults included, as plain values; not the name, which changes nothing in a run."""
        return self.model_dump(mode="json", exclude={"name"})

    def to_yaml(self) -> str:
        """Returns a recipe file with every default written out; reading it gives an equal recipe."""
        yaml, text = YAML(typ="safe", pure=True), io.StringIO()
        yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False
        yaml.allow_unicode = True
        yaml.dump({"name": self.name, **self.dump()}, text)
        return text.getvalue()

    def differing_keys(self, other: Recipe) -> list[str]:
        """Returns what differs as `section.key (mine, not theirs)`, in the order of the recipe."""
        return _differences(self.dump(), other.dump())


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that comes with the package.

    Attributes:
        name: `<task>/<dataset>_<size>`.
        path: the file.
        purpose: the first line of its header.
        header: the other header lines, `key: value`; such as command, hardware, minutes, measured.
    """

    name: str
    path: Path
    purpose: str
    header: dict[str, str] = field(default_factory=dict)


def list_recipes(directory: Path = RECIPES) -> list[RecipeFile]:
    """Returns the recipes that come with the package, by name. Reads their headers only."""
    return [_read_header(path, _name_of(path, directory)) for path in sorted(directory.glob("*/*.yaml"))]


def find_recipe(path_or_name: str) -> Path:
    """Returns the file of a recipe given by path, or by the name of one that comes with the package.

    Raises:
        UserError: there is neither; the nearest name is given.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    recipes = {recipe.name: recipe.path for recipe in list_recipes()}
    if path_or_name in recipes:
        return recipes[path_or_name]
    name = path_or_name.removeprefix("recipes/").removesuffix(".yaml")
    raise UserError(f"{path_or_name}: no such file and no recipe of that name; {did_you_mean(name, recipes)}")


def copy_recipe(name: str, to: Path) -> Path:
    """Copies a recipe, to be changed, into the file `to` or the directory `to`; returns the new file.

    Raises:
        UserError: no such recipe, or there is a file already.
    """
    source = find_recipe(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise UserError(f"{target}: exists already; name another file: `kerasllm recipes copy {name} FILE`")
    atomic_write_bytes(target, source.read_bytes())
    return target


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        path_or_name: a file, or the name of a recipe that comes with the package.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        UserError: the first mistake in the file or in an override, with line, key and what to do.
    """
    path = find_recipe(str(path_or_name))
    document = apply_overrides(load_document(path), overrides)
    document.data.setdefault("name", _name_of(path))
    recipe = build_settings(_recipe_class(document), document)
    recipe._document = document
    return recipe


def _recipe_class(document: Document) -> type[Recipe]:
    """Returns the recipe class with the sections of the document's task."""
    task = document.data.get("task")
    known = _known_tasks()
    if task is None:
        raise UserError(f"{document.path}: task: is missing; use one of {', '.join(known)}")
    if task not in known:
        raise UserError(f"{document.place(('task',))}: unknown task '{task}'; {did_you_mean(str(task), known)}")
    sections = {name: _section(kind) for name, kind in _import_task(task).sections.items()}
    return pydantic.create_model(f"{_class_name(task)}Recipe", __base__=Recipe, **sections)


def _section(kind: Any) -> tuple[Any, Any]:
    """A section of a task, as pydantic takes a field: the kind of its settings, or a union of which the first is the
    default, and what it is where the recipe says nothing."""
    cls = kind
    while not isinstance(cls, type):
        cls = typing.get_args(cls)[0]
    return kind, cls() if kind is not cls else pydantic.Field(default_factory=cls) if _has_defaults(cls) else ...


def _known_tasks() -> list[str]:
    folder = Path(kerasllm.tasks.__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _import_task(task: str) -> Any:
    return getattr(importlib.import_module(f"kerasllm.tasks.{task}"), _class_name(task))


def _class_name(task: str) -> str:
    """`classify_text` -> `ClassifyText`."""
    return "".join(word.capitalize() for word in task.split("_"))


def _has_defaults(cls: type[Settings]) -> bool:
    return not any(field.is_required() for field in cls.model_fields.values())


def _name_of(path: Path, directory: Path | None = None) -> str:
    """`recipes/translate/dates_tiny.yaml` -> `translate/dates_tiny`; any other file is named by its own name."""
    in_package = directory is not None or path.resolve().is_relative_to(RECIPES.resolve())
    return f"{path.parent.name}/{path.stem}" if in_package else path.stem


def _read_header(path: Path, name: str) -> RecipeFile:
    """Reads the comment lines at the top of a recipe; a line that begins with spaces goes on with the one before."""
    purpose, header, key = "", {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        word, colon, value = text.partition(":")
        if purpose and colon and word.isidentifier():
            key = word
            header[key] = value.strip()
        elif key:
            header[key] = f"{header[key]} {text.strip()}".strip()
        else:
            purpose = f"{purpose} {text.strip()}".strip()
    return RecipeFile(name, path, purpose, header)


def _differences(mine: Any, theirs: Any, prefix: str = "") -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = dict.fromkeys([*mine, *theirs])
        return [
            line
            for key in keys
            for line in _differences(mine.get(key), theirs.get(key), f"{prefix}.{key}".removeprefix("."))
        ]
    return [] if mine == theirs else [f"{prefix} ({mine}, not {theirs})"]
