"""A built-in corpus: the documentation inside the interpreter that runs.

    {"text": "Topological sorter.\\nProvides functionality to topologically sort a graph of hashable nodes. ..."}

A document is a module with its functions, a class with its methods, or a topic of `help()` such as `for`. The files of
the standard library are parsed and not imported, so nothing in them is executed; only a few modules written in C are
asked for what they say of themselves. A text that stands in several places is taken once.
"""

import ast
import hashlib
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "__pycache__"}
"""Tests, and what is no library."""
IN_C = ("array", "builtins", "cmath", "gc", "itertools", "marshal", "math", "sys", "time", "unicodedata", "zlib")
"""Modules without a file, which are loaded without doing anything."""
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def generate_python_docs(split: str, num_records: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records with `text`, in the order of a hash, at most as many as there are.

    One document in twenty belongs to validation, one to test; which ones follows from (seed, name of the document).
    """
    found = {digest_of(name, seed): document for name, document in all_documents()}
    chosen = [document for digest, document in sorted(found.items()) if split_of(digest) == split]
    yield from ({"text": document} for document in chosen[:num_records])


def digest_of(name: str, seed: int) -> bytes:
    """What says where a document belongs."""
    return hashlib.sha256(f"python_docs/{seed}/{name}".encode()).digest()


def split_of(digest: bytes) -> str:
    """The split of a document."""
    return {0: "validation", 1: "test"}.get(digest[-1] % 20, "train")


@lru_cache(maxsize=1)
def all_documents() -> tuple[tuple[str, str], ...]:
    """(name, text) of each document, by name; a paragraph is a line."""
    seen: set[str] = set()
    documents = []
    for name, docstrings in sorted([*_of_files(), *_of_c_modules(), *_of_topics()]):
        new = [text for text in dict.fromkeys(docstrings) if text not in seen]
        seen.update(new)
        paragraphs = [line for text in new for line in paragraphs_of(text)]
        if paragraphs:
            documents.append((name, "\n".join(paragraphs)))
    return tuple(documents)


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a documentation string as a line each, without examples of code, tables and underlines."""
    paragraphs = []
    for block in inspect.cleandoc(text).split("\n\n"):
        line = " ".join(part for part in block.split() if any(map(str.isalnum, part)) or len(part) < 4)
        letters = sum(character.isalpha() or character.isspace() for character in line)
        if ">>>" not in block and "::=" not in block and letters > 0.8 * len(line) > 0:
            paragraphs.append(line)
    return paragraphs


def _of_files() -> Iterator[tuple[str, list[str]]]:
    """The documents of the modules that are written in Python."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or LEFT_OUT.intersection(parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old escapes in string literals
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # a template, or a file in a distribution's own form
            continue
        yield from _of_tree(".".join(parts).removesuffix(".__init__"), tree)


def _of_tree(name: str, tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, list[str]]]:
    """A module or class: what it says of itself and of its functions; then each class inside of it."""
    described = [tree, *(node for node in tree.body if isinstance(node, _FUNCTIONS))]
    yield name, [text for node in described if (text := ast.get_docstring(node))]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _of_tree(f"{name}.{node.name}", node)


def _of_c_modules() -> Iterator[tuple[str, list[str]]]:
    for name in IN_C:
        try:
            module = importlib.import_module(name)
        except ImportError:  # left out of this interpreter when it was built
            continue
        yield name, _said_by(module)
        for each in sorted(vars(module)):
            if inspect.isclass(vars(module)[each]):
                yield f"{name}.{each}", _said_by(vars(module)[each])


def _said_by(owner: ModuleType | type) -> list[str]:
    """What a module or class says of itself and of its functions, by their names.

    Those that a program may put its own in place of, hooks and functions of Python, are left out.
    """
    members = [vars(owner)[name] for name in sorted(vars(owner)) if not name.startswith("__") and "hook" not in name]
    described = [owner, *(each for each in members if inspect.isroutine(each) and not inspect.isfunction(each))]
    return [each.__doc__ for each in described if isinstance(each.__doc__, str)]


def _of_topics() -> Iterator[tuple[str, list[str]]]:
    """The language reference, as far as `help()` has it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    yield from ((f"topic {name}", [topics[name]]) for name in sorted(topics))
