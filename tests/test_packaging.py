"""What is installed: the wheel holds the package and its recipes, and works without the checkout."""

import configparser
import importlib.metadata
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def setup(repository) -> configparser.ConfigParser:
    """The settings in setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """The wheel, built from what git would hand over, with the build tools of this environment."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=repository, check=True, capture_output=True).stdout.decode().split("\0")
    for name in filter(None, files):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).exists():
            path.write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = target.glob("*.whl")
    return found


def requirement_name(line: str) -> str:
    return re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-").replace(".", "-")


def test_the_wheel_holds_the_package_and_the_recipes(repository, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(repository)) for path in (repository / "kerasllm").rglob("*.py")}
    recipes = {f"kerasllm/{path.relative_to(repository)}" for path in (repository / "recipes").rglob("*.yaml")}
    assert recipes
    assert modules | recipes <= names
    assert not [name for name in names if name.startswith(("tests", "tools", "recipes"))]


def test_every_import_is_a_declared_requirement(repository, setup):
    extras = [lines for extra, lines in setup["options.extras_require"].items() if extra != "test"]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).split("\n")
    declared = {requirement_name(line) for line in lines if line.strip()}
    of_module = importlib.metadata.packages_distributions()
    text = "\n".join(path.read_text("utf-8") for path in (repository / "kerasllm").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE)) - {"kerasllm"}
    third_party = {name for name in imported if name in of_module and name not in sys.stdlib_module_names}
    missing = {
        name: of_module[name] for name in third_party if not declared & set(map(requirement_name, of_module[name]))
    }
    assert missing == {}


def test_every_requirement_has_a_floor_and_known_bad_versions_are_out(setup):
    requirements = [line.strip() for line in setup["options"]["install_requires"].split("\n") if line.strip()]
    assert [line for line in requirements if ">=" not in line] == []
    by_name = {requirement_name(line): line for line in requirements}
    assert "!=2.21.0" in by_name["tensorflow-text"]
    from packaging.requirements import Requirement

    keras = Requirement(by_name["keras"]).specifier
    assert [
        version for version in ("3.12.3", "3.12.4", "3.13.2", "3.14.1", "3.15.0", "3.15.1") if version in keras
    ] == [
        "3.12.4",
        "3.15.1",
    ]


def test_the_running_libraries_fit_the_requirements(setup):
    from packaging.requirements import Requirement

    for line in filter(None, map(str.strip, setup["options"]["install_requires"].split("\n"))):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert importlib.metadata.version(requirement.name) in requirement.specifier, line


@pytest.mark.slow
def test_an_installed_wheel_lists_copies_and_trains_recipes(wheel, tmp_path):
    """A new environment, with the libraries of this one but without the checkout."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    # The .pth files of those folders are not read, so an editable install of this checkout stays out of the way.
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--force-reinstall", str(wheel)], check=True, capture_output=True)

    def kerasllm(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(environment / "bin" / "kerasllm"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        return done

    located = [str(environment / "bin" / "python"), "-c", "import kerasllm; print(kerasllm.__file__)"]
    assert subprocess.run(located, cwd=tmp_path, capture_output=True, text=True).stdout.startswith(str(environment))
    assert "translate/dates_tiny" in kerasllm("recipes").stdout
    kerasllm("recipes", "copy", "translate/dates_tiny", "mine.yaml")
    smaller = ["--set", "data={source: built_in, name: dates, train: 200, validation: 20, test: 20}"]
    smaller += ["--set", "training={train_steps: 2}"]
    result = kerasllm("train", "mine.yaml", "--run-dir", "run", "--json", *smaller)
    assert '"steps": 2' in result.stdout
