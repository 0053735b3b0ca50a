"""What every model must be, found by walking kerasllm/models."""

import importlib
import inspect
from pathlib import Path

import keras
import pytest

import kerasllm.models
from kerasllm.models import settings

NAMES = sorted({path.stem for path in Path(kerasllm.models.__file__).parent.glob("[a-z]*.py")} - {"settings"})


def camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_there_are_models():
    assert "encoder_decoder" in NAMES


def test_the_file_holds_a_documented_model_of_its_name(name):
    model = getattr(importlib.import_module(f"kerasllm.models.{name}"), camel(name))
    assert issubclass(model, keras.Model)
    assert "Args:" in model.__doc__
    assert "Reference" in model.__doc__


def test_its_settings_are_its_arguments_with_the_same_defaults(name):
    model = getattr(importlib.import_module(f"kerasllm.models.{name}"), camel(name))
    arguments = inspect.signature(model).parameters
    defaults = getattr(settings, f"{camel(name)}Settings")().model_dump()
    assert set(defaults) == {key for key, value in arguments.items() if value.default is not inspect.Parameter.empty}
    for key, value in defaults.items():
        assert arguments[key].default == value, key
