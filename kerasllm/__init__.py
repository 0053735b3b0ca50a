"""kerasllm: from raw text or images to a model that answers on a server.

Importing the package sets what TensorFlow reads from the environment when it loads (`kerasllm.environment`), and
loads nothing heavy: the public names below are imported when they are first used.
"""

import importlib

from kerasllm.environment import configure

__version__ = "0.1.0"

_PUBLIC = {
    "UserError": "kerasllm.errors",
    "RunDirectory": "kerasllm.run_directory",
    "Recipe": "kerasllm.recipe",
    "list_recipes": "kerasllm.recipe",
    "load_recipe": "kerasllm.recipe",
    "prepare": "kerasllm.stages.prepare",
    "train": "kerasllm.stages.train",
    "compare": "kerasllm.stages.compare",
    "evaluate": "kerasllm.stages.evaluate",
    "predict": "kerasllm.stages.predict",
    "export": "kerasllm.stages.export",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kerasllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


configure()
