"""The teachers of a distillation: trained models that a recipe names, found, compared with the student, and asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasllm.data.published import HUB, locate, read_vocabulary
from kerasllm.data.vocabulary import vocabulary_hashes
from kerasllm.errors import UserError
from kerasllm.models.settings import PretrainedBertSettings
from kerasllm.recipe import Recipe
from kerasllm.runs.trained_run import build_model, load_run
from kerasllm.task import Task
from kerasllm.training.checkpoints import read_variables
from kerasllm.training.distillation import Hidden, Teacher
from kerasllm.training.objective_settings import DistillationSettings, ObjectiveSettings

CONFIG = "config.json"


def distillations(recipe: Recipe) -> Iterator[tuple[DistillationSettings, str]]:
    """All that a recipe has, in its training and its ticks, with the place of each."""
    found: list[tuple[ObjectiveSettings | None, str]] = [
        (recipe.training.objective, recipe.place("training", "objective"))
    ]
    for index, tick in enumerate(recipe.ticks):
        found.append((tick.objective, recipe.place("ticks", index, "objective")))
    for settings, place in found:
        while settings is not None:
            if isinstance(settings, DistillationSettings):
                yield settings, place
            settings, place = getattr(settings, "around", None), f"{place}.around"


def build_teachers(
    recipe: Recipe, task: Task, vocabulary: Path, batch: Mapping[str, np.ndarray]
) -> tuple[dict[str, Teacher], dict[str, str]]:
    """Every teacher of a recipe, by its name there.

    Args:
        recipe: of the student.
        task: of the student, with its model.
        vocabulary: the prepared directory, with the student's tokenizer and labels.
        batch: a small one, on which student and teacher are tried.

    Returns:
        The teachers, and a fingerprint of the weights of each, hexadecimal.

    Raises:
        UserError: a teacher cannot be found or loaded, has other tokens or labels, takes only shorter texts, or answers
            in another form.
    """
    teachers: dict[str, Teacher] = {}
    fingerprints: dict[str, str] = {}
    compares_hidden = {settings.teacher for settings, _ in distillations(recipe) if settings.hidden_weight}
    for settings, place in distillations(recipe):
        name = settings.teacher
        if name in teachers:
            continue
        try:
            teacher_task = load_teacher(name, recipe, task, vocabulary)
            with_hidden = name in compares_hidden
            teachers[name] = build_teacher(name, recipe, task, teacher_task, with_hidden)
            _try(name, task, teachers[name], batch)
        except UserError as error:
            raise UserError(f"{place}.teacher: {error}") from error
        fingerprints[name] = _fingerprint(teacher_task.model)
    return teachers, fingerprints


def load_teacher(name: str, recipe: Recipe, task: Task, vocabulary: Path) -> Task:
    """The task of a teacher, with its model; the arguments are those of `build_teachers`."""
    if name.startswith(HUB) or (Path(name) / CONFIG).is_file():
        return _load_published(name, recipe, task)
    run = load_run(name)
    if run.recipe.task != recipe.task:
        raise UserError(f"{name}: has learnt to {run.recipe.task}, and this recipe is to {recipe.task}")
    theirs, ours = vocabulary_hashes(run.directory.path), vocabulary_hashes(vocabulary)
    differing = [file for file in {**ours, **theirs} if ours.get(file) != theirs.get(file)]
    if differing:
        raise UserError(
            f"{name}: its {' and '.join(differing)}: not as this recipe's data gives it; a teacher must have learnt "
            "the same tokens and labels, from the same data and with the same section `tokenizer`"
        )
    return run.task


def _load_published(name: str, recipe: Recipe, task: Task) -> Task:
    """A model in the layout of Hugging Face with the head that this task has there."""
    from kerasllm.models.published.bert import read_published

    if not isinstance(getattr(recipe, "model", None), PretrainedBertSettings):
        raise UserError(f"{name}: only a run can teach to {recipe.task}")
    found, ours = read_vocabulary(name), getattr(task.tokenizer, "vocabulary", None)
    if ours is None or (found.tokens, found.normalization()) != (ours.tokens, ours.normalization()):
        raise UserError(
            f"{name}: its tokenizer is not that of this recipe; take `tokenizer: {{kind: wordpiece, vocabulary: ...}}` "
            "with the vocabulary of the teacher"
        )
    config = json.loads((locate(name) / CONFIG).read_bytes())
    labels = config.get("id2label", {})
    labels = tuple(labels[key] for key in sorted(labels, key=int))
    if task.vocabulary.labels and labels != task.vocabulary.labels:
        raise UserError(
            f"{name}: {CONFIG}: id2label has {', '.join(labels) or 'nothing'}, and the labels of the data are "
            f"{', '.join(task.vocabulary.labels)}; they must be the same in the same order"
        )
    published = read_published(name)
    settings = type(recipe.model)(**published.settings.model_dump())
    changed = recipe.model_copy(update={"model": settings})
    teacher_task = type(task)(changed, task.vocabulary)
    model = build_model(teacher_task, changed)
    published.assign(model, teacher_task.published_form()[1])
    return teacher_task


def build_teacher(name: str, recipe: Recipe, task: Task, teacher_task: Task, with_hidden: bool) -> Teacher:
    """A teacher that answers to batches of the student, with its hidden vectors if they are to be compared."""
    model, student = teacher_task.model, task.model
    longest = min(recipe.batching.max_sequence_length, getattr(student, "max_sequence_length", np.inf))
    positions = getattr(model, "max_sequence_length", np.inf)
    if positions < longest:
        raise UserError(f"{name}: reads {positions} tokens, and a text of this recipe may have {longest}; lower "
                        "batching.max_sequence_length")  # fmt: skip
    if with_hidden and not hasattr(model, "recorded_hidden"):
        raise UserError(f"{name}: cannot record its hidden vectors; leave out hidden_weight")

    def ask(batch: Any) -> tuple[tf.Tensor, Hidden]:
        if not with_hidden:
            return teacher_task.forward(model, batch, training=False), []
        with model.recorded_hidden() as hidden:
            return teacher_task.forward(model, batch, training=False), hidden

    if not with_hidden or model.hidden_dim == getattr(student, "hidden_dim", None):
        return Teacher(ask)
    initializer = keras.initializers.GlorotUniform(seed=recipe.seed)
    projection = keras.layers.Dense(
        model.hidden_dim,
        use_bias=False,
        kernel_initializer=initializer,
        dtype="float32",
        name="distillation_projection",
    )
    projection.build((None, None, student.hidden_dim))
    return Teacher(ask, projection)


def helpers_of(teachers: Iterable[Teacher]) -> list[keras.Variable]:
    """What is learnt with the student, and is no part of it."""
    return [variable for each in teachers if each.projection is not None for variable in each.projection.weights]


def _try(name: str, task: Task, teacher: Teacher, batch: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if the teacher's logits have another form than the student's, or than its losses."""
    batch = {feature: tf.constant(array) for feature, array in batch.items()}
    ours, (theirs, _) = task.forward(task.model, batch, training=False), teacher.ask(batch)
    if not isinstance(ours, tf.Tensor) or ours.shape[:-1] != task.loss(ours, batch, 0.0)[0].shape:
        raise UserError(
            f"the losses of {task.recipe.task} are not one for each of its answers; nothing can be distilled"
        )
    if ours.shape != theirs.shape:
        raise UserError(f"{name}: answers {theirs.shape[1:]} numbers, and the student {ours.shape[1:]}")


def _fingerprint(model: keras.Model) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for name, array in read_variables(model.weights).items():
        digest.update(name.encode("utf-8"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
