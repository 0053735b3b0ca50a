"""What every model must be, found by walking kerasllm/models."""

import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasllm.models
from kerasllm.environment import compute_precision
from kerasllm.layers.picture_network import PictureNetwork
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


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(model_class(name), PictureNetwork)])
def test_logits_of_pictures_are_float32_and_as_good_as_the_products_before_them(name):
    pictures, logits = tf.random.stateless_normal([4, 16, 16, 3], [1, 2]), {}
    for precision in ("float32", "bfloat16"):
        keras.utils.set_random_seed(1)
        with compute_precision(precision):
            model = model_class(name)(16, 16, 3, 5)
        logits[precision] = model(pictures, training=True)
        assert logits[precision].dtype == tf.float32
    wanted = logits["float32"]
    assert 0 < np.abs(logits["bfloat16"] - wanted).max() < 0.1 * np.std(wanted)
