"""The walls of the house (kerasllm/README.md): who may import whom, and how long a file may be."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module imports strictly lower levels only. Inside a folder, and between the single files of a level, imports
# are free as long as they form no circle.
LEVELS = {
    "errors": 0,
    "cluster": 0,
    "meeting": 0,
    "environment": 0,
    "settings": 0,
    "terminal": 0,
    "run_directory": 0,
    "data": 1,
    "layers": 1,
    "training": 1,
    "models": 2,
    "generation": 2,
    "tuning": 2,
    "metrics": 2,
    "picture_grid": 2,
    "attribution": 2,
    "task": 3,
    "label_task": 3,
    "picture_task": 3,
    "tasks": 4,
    "recipe": 5,
    "runs": 6,
    "first_recipes": 6,
    "serving": 6,
    "stages": 7,
    "cli": 8,
    "command_parts": 8,
    "__main__": 8,
    "__init__": 8,
}
LEVELS_OF_SINGLE_FILES = {0, 2, 3, 8}
FOLDERS_OF_LEAVES = {"stages", "tasks"}
EMPTY_NAMES = {"utils", "common", "helpers", "misc", "base"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400


def modules_of(root: Path) -> dict[str, ast.Module]:
    """Every module below `root`, parsed: `data.sources`, `cli`; a package is named `data.__init__`."""
    files = sorted(path for path in root.rglob("*.py"))
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): ast.parse(path.read_text("utf-8")) for path in files
    }


def imported_names(tree: ast.Module, module: str) -> Iterator[str]:
    """All dotted names that a module imports, inside functions too, relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["kerasllm", *module.split(".")][: -node.level] if node.level else []
            start = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def imports_of(tree: ast.Module, module: str, modules: dict[str, ast.Module]) -> set[str]:
    """The modules of this package that a module imports. The root is left out: what it offers is the version."""
    found = set()
    for name in imported_names(tree, module):
        parts = name.split(".")
        if parts[0] != "kerasllm":
            continue
        candidates = [".".join(parts[1:length]) for length in range(len(parts), 1, -1)]
        candidates = [each for name in candidates for each in (name, f"{name}.__init__")]
        known = [candidate for candidate in candidates if candidate in modules]
        if known:
            found.add(known[0])
        elif len(parts) > 1 and parts[1:] != ["__version__"]:
            found.add(".".join(parts[1:]))
    return found - {module}


def violation(importer: str, imported: str) -> str | None:
    """What is wrong with one import, if anything is."""
    room, other = importer.split(".")[0], imported.split(".")[0]
    if other not in LEVELS:
        return "is not a module of the package"
    if room == other and room in FOLDERS_OF_LEAVES:
        return f"one of {room}/ imports another"
    if room == "serving" and other != "serving" and LEVELS[other] > 0:
        return "serving imports nothing of the levels above 0"
    if room == other or LEVELS[other] < LEVELS[room]:
        return None
    if LEVELS[other] == LEVELS[room] and LEVELS[room] in LEVELS_OF_SINGLE_FILES and "." not in importer + imported:
        return None
    return f"level {LEVELS[room]} imports level {LEVELS[other]}"


def violations(root: Path) -> list[str]:
    """All that is wrong with the imports below `root`."""
    modules = modules_of(root)
    found = [
        f"{name}: belongs to no level; add its room to LEVELS" for name in modules if name.split(".")[0] not in LEVELS
    ]
    graph = {name: imports_of(tree, name, modules) for name, tree in modules.items()}
    for importer, imports in graph.items():
        if importer.split(".")[0] in LEVELS:
            reasons = {imported: violation(importer, imported) for imported in sorted(imports)}
            found += [f"{importer} -> {imported}: {reason}" for imported, reason in reasons.items() if reason]
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found


def too_long(path: Path) -> list[str]:
    """The functions of a file, and the file itself, that are too long."""
    text = path.read_text("utf-8")
    found = [f"{path}: {text.count(chr(10))} lines"] if text.count("\n") > MAX_FILE_LINES else []
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node: node.end_lineno - node.lineno + 1 for node in functions}
    return found + [
        f"{path}:{n.lineno}: {n.name}: {lines} lines" for n, lines in lengths.items() if lines > MAX_FUNCTION_LINES
    ]


def test_imports_point_downward(repository):
    assert violations(repository / "kerasllm") == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("data/sources.py", "import kerasllm.models.big", "data.sources -> models.big: level 1 imports level 2"),
        ("data/sources.py", "from kerasllm.layers import dropout", "-> layers.dropout: level 1 imports level 1"),
        ("data/sources.py", "from ..training import trainer", "-> training.trainer: level 1 imports level 1"),
        ("training/trainer.py", "def f():\n    from kerasllm.data import sources", "level 1 imports level 1"),
        ("models/big.py", "from kerasllm.generation.beam import search", "level 2 imports level 2"),
        ("stages/train.py", "from kerasllm.stages.export import export", "one of stages/ imports another"),
        ("tasks/tag.py", "import kerasllm.tasks.translate", "one of tasks/ imports another"),
        ("serving/client.py", "from kerasllm.data.sources import x", "serving imports nothing of the levels above 0"),
        ("serving/client.py", "from kerasllm import recipe", "serving imports nothing of the levels above 0"),
        (
            "recipe.py",
            "import importlib\nimportlib.import_module('kerasllm.cli')",
            "recipe -> cli: level 5 imports level 8",
        ),
        ("recipe.py", "from kerasllm.stages.export import export", "level 5 imports level 7"),
        ("settings.py", "from kerasllm.nothing import x", "nothing.x: is not a module of the package"),
        ("settings.py", "from kerasllm import errors", "circle: "),
        ("data/store.py", "from kerasllm.data.sources import x", "circle: "),
        ("shed.py", "", "shed: belongs to no level"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line, complaint):
    house = {
        "errors.py": "from kerasllm import settings" if "errors" in line else "",
        "settings.py": "",
        "data/sources.py": "from kerasllm.data import store" if "store" in file else "",
        "data/store.py": "",
        "layers/dropout.py": "",
        "training/trainer.py": "",
        "models/big.py": "from kerasllm.layers import dropout\nfrom kerasllm.settings import Settings",
        "generation/beam.py": "",
        "tasks/translate.py": "from kerasllm.models.big import Big",
        "recipe.py": "import kerasllm.tasks.translate\nfrom kerasllm import __version__",
        "serving/saved_model.py": "from kerasllm.errors import UserError",
        "stages/export.py": "import kerasllm\nfrom kerasllm.serving import saved_model\nfrom kerasllm import recipe",
        "cli.py": "from kerasllm import __version__\nfrom kerasllm.stages.export import export",
        "__init__.py": "",
    }
    for name, text in house.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if "circle" not in complaint:
        assert violations(tmp_path) == []
    (tmp_path / file).write_text(line)
    assert any(complaint in found for found in violations(tmp_path)), violations(tmp_path)


def test_the_map_names_every_room(repository):
    rooms = {path.name for path in (repository / "kerasllm").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__.py", "__main__.py", "__pycache__", "recipes"}
    text = (repository / "kerasllm" / "README.md").read_text("utf-8")
    assert sorted(room for room in rooms if room not in text) == []


def test_names_say_what_is_inside(repository):
    files = [path for folder in ("kerasllm", "tests", "tools") for path in (repository / folder).rglob("*.py")]
    assert [str(path) for path in files if path.stem.removeprefix("test_") in EMPTY_NAMES] == []


def test_files_and_functions_are_short(repository):
    files = [path for folder in ("kerasllm", "tests", "tools") for path in (repository / folder).rglob("*.py")]
    assert [complaint for path in files for complaint in too_long(path)] == []


def test_a_long_function_is_found(tmp_path):
    path = tmp_path / "long.py"
    path.write_text("def short():\n" + "    x = 1\n" * 59 + "\ndef long():\n" + "    x = 1\n" * 60)
    assert too_long(path) == [f"{path}:62: long: 61 lines"]
    path.write_text("x = 1\n" * 401)
    assert too_long(path) == [f"{path}: 401 lines"]


def test_every_file_opens_with_a_docstring(repository):
    files = [path for path in (repository / "kerasllm").rglob("*.py") if path.read_text("utf-8").strip()]
    assert [str(path) for path in files if ast.get_docstring(ast.parse(path.read_text("utf-8"))) is None] == []
