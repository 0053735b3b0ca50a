"""One architecture per file."""

import importlib
from typing import Any


def model_class(name: str) -> Any:
    """The class that the file of a name defines: `conv_net` -> `ConvNet`."""
    module = importlib.import_module(f"kerasllm.models.{name}")
    return next(value for key, value in vars(module).items() if key.lower() == name.replace("_", ""))
