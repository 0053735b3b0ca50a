"""The trials of a comparison: every combination of the values of some keys, with several seeds. Loads no TensorFlow."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kerasllm.errors import UserError
from kerasllm.recipe import Recipe, load_recipe
from kerasllm.run_directory import RunDirectory
from kerasllm.runs.pretrained import complete_recipe
from kerasllm.settings import parse_values

NAME_LENGTH = 120


@dataclass(frozen=True)
class Trial:
    """A setting and a seed.

    Attributes:
        label: the setting in words, the same for all its seeds.
        values: swept key -> its value.
        directory: the run.
        recipe: with the values and the seed put in.
        overrides: the `--set` options that make it of the recipe that is compared.
    """

    name: str
    label: str
    values: dict[str, Any]
    seed: int
    directory: RunDirectory
    recipe: Recipe
    overrides: tuple[str, ...]

    @property
    def log_path(self) -> Path:
        """The file with what its process said."""
        return self.directory.path.with_name(f"{self.name}.log")

    def finished(self) -> dict[str, Any] | None:
        """What training returned, None before it has ended."""
        path = self.directory.manifest_path
        return json.loads(path.read_text("utf-8")).get("finished") if path.exists() else None


def as_text(value: Any) -> str:
    """A value of a setting for people; a section is shown by its name: `lora(rank=8, alpha=16)`."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        others = ", ".join(f"{key}={as_text(each)}" for key, each in value.items() if key != "name")
        return f"{value['name']}({others})" if others else value["name"]
    return value if isinstance(value, str) else json.dumps(value)


def read_over(over: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Reads `--over` options: for each its choices, and for each choice swept key -> value.

    `key=a,b` has a key alone, whose values may be sections: `tuning={name: full},{name: lora, rank: 4}`. Keys with +
    between them change together, and have a list for each choice: `model.num_layers+model.dropout=[2, 0],[6, 0.1]`.

    Raises:
        UserError: one is not of that form, or a key or choice comes twice.
    """
    options = [_read_choices(text) for text in over]
    keys = [key for text in over for key in _keys(text)]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise UserError(f"--over {twice}: is given twice; write all its values in one")
    return options


def _keys(text: str) -> list[str]:
    return [key.strip() for key in text.partition("=")[0].split("+")]


def _read_choices(text: str) -> list[dict[str, Any]]:
    names, equals, values = text.partition("=")
    keys = _keys(text)
    if not equals or not all(keys):
        raise UserError(f"--over {text}: must be section.key=value,value")
    if "seed" in keys:
        raise UserError("--over seed: seeds are varied by --seeds NUMBER")
    choices = parse_values(values, f"--over {text}")
    if len(keys) == 1:
        choices = [[value] for value in choices]
    for choice in choices:
        if not isinstance(choice, list) or len(choice) != len(keys):
            raise UserError(f"--over {names}: must be a list of {len(keys)} values for each, found {as_text(choice)}")
    texts = [", ".join(as_text(value) for value in choice) for choice in choices]
    twice = next((each for each in texts if texts.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"--over {names}: the value {twice} is given twice")
    return [dict(zip(keys, choice, strict=True)) for choice in choices]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key -> how it is shown: `optimizer` for `training.optimizer.name`, else its last part where that tells enough."""
    last = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def directory_name(text: str) -> str:
    """A file name for a setting, that no other one has."""
    plain = text.replace(", ", ",")
    name = re.sub(r"[^\w.+=,-]", "_", plain)[:NAME_LENGTH]
    return name if name == plain else f"{name}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def plan_trials(
    base: Recipe,
    path: str,
    over: Sequence[str],
    num_seeds: int,
    directory: Path,
    overrides: Sequence[str],
    data_dir: Path | str | None = None,
) -> list[Trial]:
    """All combinations of the values and seeds, each with its validated recipe, as the run of the trial will have it.

    Raises:
        UserError: a key or a value that the recipe cannot have, or one that is given twice.
    """
    options = read_over(over)
    names = short_names([key for choices in options for key in choices[0]])
    trials = []
    for combination in itertools.product(*options):
        values = {key: value for choice in combination for key, value in choice.items()}
        label = ", ".join(f"{names[key]}={as_text(value)}" for key, value in values.items())
        sets = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        for seed in range(base.seed, base.seed + num_seeds):
            all_sets = (*overrides, *sets, f"seed={seed}")
            try:
                loaded = complete_recipe(load_recipe(path, all_sets), data_dir)
            except UserError as error:  # the recipe without these values was sound
                raise UserError(str(error).replace("--set", "--over")) from error
            name = f"{directory_name(label)},seed={seed}"
            run = RunDirectory(directory / "trials" / name)
            trials.append(Trial(name, label, values, seed, run, loaded, all_sets))
    return trials


def check_trials(trials: Sequence[Trial]) -> None:
    """Compares the trials that are there with what they would be made by now.

    Raises:
        UserError: one was made by another recipe.
    """
    for trial in trials:
        directory = trial.directory
        differing = trial.recipe.differing_keys(load_recipe(directory.recipe_path)) if directory.exists() else []
        if differing:
            keys = "; ".join(differing)
            raise UserError(f"{directory.path}: was made by another recipe: {keys}; take another --run-dir")
