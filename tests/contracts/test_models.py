"""What every model must be, found by walking kerasllm/models."""

import inspect
from pathlib import Path

import keras
import pytest

import kerasllm.models
from kerasllm.models import model_class, settings

NAMES = sorted({path.stem for path in Path(kerasllm.models.__file__).parent.glob("[a-z]*.py")} - {"settings"})


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_there_are_models():
    assert "encoder_decoder" in NAMES


def test_the_file_holds_a_documented_model_of_its_name(name):
    model = model_class(name)
    assert issubclass(model, keras.Model)
    assert "Args:" in model.__doc__
    assert "Reference" in model.__doc__


def test_its_settings_are_its_arguments_with_the_same_defaults(name):
    model = model_class(name)
    arguments = inspect.signature(model).parameters
    chosen = getattr(settings, f"{model.__name__}Settings")()
    defaults = {key: getattr(chosen, key) for key in type(chosen).model_fields if key != "name"}
    assert set(defaults) == {key for key, value in arguments.items() if value.default is not inspect.Parameter.empty}
    for key, value in defaults.items():
        assert arguments[key].default == value, key
