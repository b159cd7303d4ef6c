"""The house: who may import whom, and no name of ours hides somebody else's."""

import ast
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["modeling_rats", "hub_cards", "evaluation", "training"]  # each may import those before it
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports_of(path):
    """The modules that a file imports, relative ones resolved, wherever in the file they stand."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def required_distributions():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    names = [line.strip() for block in lines for line in block.splitlines()]
    ends = "<>=!~ ;["
    return {name[: min((name.find(end) for end in ends if end in name), default=len(name))].lower() for name in names if name}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_only_those_to_its_left(path):
    layer = path.relative_to(ROOT).parts[0]
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    ours = {name.split(".")[0] for name in imports_of(path)} & {*LAYERS, "tests", "docs"}
    assert ours <= set(allowed), f"{path} imports {sorted(ours - set(allowed))}; {layer} may import {allowed}"


@pytest.mark.parametrize("path", sorted((ROOT / "modeling_rats").glob("*.py")), ids=lambda path: path.name)
def test_the_library_imports_itself_relatively(path):
    """A remote-code repository holds flat copies of its files: `from .x import y` works there, nothing else."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != "modeling_rats", ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "modeling_rats" for alias in node.names), ast.unparse(node)


def test_no_file_or_folder_hides_a_module_of_python_or_of_a_dependency():
    required = required_distributions()
    assert {"torch", "transformers", "datasets", "evaluate"} <= required
    taken = set(sys.stdlib_module_names) | {name.replace("-", "_") for name in required}
    taken |= {
        module
        for module, distributions in packages_distributions().items()
        if required & {distribution.lower() for distribution in distributions}
    }
    taken -= {"modeling_rats"}
    names = {path: path.stem for path in FILES} | {path.parent: path.parent.name for path in FILES}
    hiding = [str(path.relative_to(ROOT)) for path, name in names.items() if name in taken - set(LAYERS)]
    assert not hiding, f"{hiding} are named like a module of the standard library or of a dependency"


def test_every_test_file_mirrors_a_module():
    for path in (ROOT / "tests").rglob("test_*.py"):
        layer, *rest = path.relative_to(ROOT / "tests").parts
        if rest:
            module = path.stem.removeprefix("test_")
            assert any((ROOT / layer).rglob(f"{module}.py")) or (ROOT / layer / module).is_dir(), f"{path}: no {module}"
