"""What every task must be, found by walking kerasllm/tasks: a new file is tested without a word here."""

import importlib
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import kerasllm.tasks
from kerasllm.settings import Settings
from kerasllm.task import Task

NAMES = sorted(path.stem for path in Path(kerasllm.tasks.__file__).parent.glob("[a-z]*.py"))


@pytest.fixture(params=NAMES)
def module(request):
    return importlib.import_module(f"kerasllm.tasks.{request.param}")


@pytest.fixture
def task_class(module):
    name = module.__name__.rpartition(".")[2]
    return getattr(module, "".join(word.capitalize() for word in name.split("_")))


def test_there_are_tasks():
    assert "translate" in NAMES


def test_the_parts_of_the_contract(task_class):
    assert task_class.fields
    assert all(isinstance(field, str) for field in task_class.fields)
    assert task_class.metric_names
    known = {*task_class.fields, *task_class.optional_fields}
    assert {*task_class.inputs.values(), *task_class.text_fields} <= known
    assert {task_class.reference, task_class.label_field} <= {*known, None}
    for section, settings in task_class.sections.items():
        assert section.isidentifier()
        union = typing.get_args(settings)  # a choice of several, or none
        for each in typing.get_args(union[0]) if union else [settings]:
            assert issubclass(each, Settings)
    for method in ("encode", "build_model", "forward", "loss", "answer", "metrics"):
        assert getattr(task_class, method).__doc__, method
        assert getattr(task_class, method) is not getattr(Task, method), f"{method} is left to Task"


def test_the_file_opens_with_a_sample(module):
    first_words = [line.split()[0] for line in module.__doc__.splitlines() if line.split()]
    assert {"record", "features", "answer"} <= set(first_words)


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_task_loads_no_tensorflow(name):
    code = f"import sys, kerasllm.tasks.{name}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
