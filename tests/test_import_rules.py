"""Which file may import what: the rooms of the design, read from the source with `ast`."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_stage.prompts import FOLDER, read_template

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dmsrec_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LLM_STAGE = sorted((ROOT / "llm_stage").rglob("*.py"))

ONLY_IN = {
    "jraph": "graphs.py",
    "orbax": "checkpoint.py",
    "tyro": "cli.py",
    "torch": "import_torch.py",
    "safetensors": "import_torch.py",
    "optax": "steps.py",
    "polars": "data/",
}
"""Packages that one file (or folder) alone may import."""

MAY_IMPORT = {
    "errors.py": set(),
    "config.py": set(),
    "files.py": {"numpy"},
    "data/": {"numpy", "polars", "rich"},
    "artifacts.py": {"numpy"},
    "metrics.py": {"numpy"},
    "bootstrap.py": {"numpy"},
    "graphs.py": {"jax", "jaxtyping", "jraph", "numpy"},
    "orders.py": {"jax", "jaxtyping", "numpy"},
    "layers.py": {"flax", "jax", "jaxtyping"},
    "backbones/": {"flax", "jax", "jaxtyping"},
    "alignment.py": {"jax", "jaxtyping"},
    "semantics.py": {"flax", "jax", "jaxtyping"},
    "model.py": {"flax", "jax", "jaxtyping", "numpy"},
    "steps.py": {"flax", "jax", "jaxtyping", "optax"},
    "report_page.py": set(),
    "report_tables.py": set(),
    "report_figures.py": {"cycler", "matplotlib", "numpy"},
    "neighbor_methods.py": {"numpy", "scipy"},
    "neighbors.py": {"numpy", "rich", "yaml"},
}
"""All that these rooms may import beside the standard library and this package."""

FLOORS = (
    "errors config",
    "files",
    "data",
    "metrics bootstrap neighbor_methods graphs item_graph artifacts cli checkpoint parallel",
    "results layers history intents orders feed once",
    "backbones semantics alignment",
    "model",
    "steps",
    "scoring epochs",
    "members",
    "runs",
    "recipe ensemble",
    "crossfit outcome plan",
    "group",
    "prepare train evaluate candidates sweep placebo recommend neighbors import_torch",
    "report_data report_page",
    "report_tables report_figures report_examples",
    "report pipeline",
)
"""A module imports from lower floors only; a package may also import from itself."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

BACKBONES_USE = {"layers", "graphs", "item_graph"}
LLM_STAGE_USES = {"artifacts", "data", "errors", "files", "cli"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(parse(path))} - sys.stdlib_module_names - {"dmsrec_jax"}


def own(path: Path) -> set[str]:
    """Modules of this package that a file imports, by the first name after the package's."""
    return {name.split(".")[1] for name in imports(parse(path)) if name.startswith("dmsrec_jax.")}


def inside(path: Path, room: str) -> bool:
    return path.relative_to(PACKAGE).as_posix().startswith(room)


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_package_has_its_room(path):
    strangers = {package for package in third_party(path) & ONLY_IN.keys() if not inside(path, ONLY_IN[package])}
    assert not strangers
    for room, allowed in MAY_IMPORT.items():
        if inside(path, room):
            assert third_party(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_imports_upward(path):
    if path == PACKAGE / "__init__.py":
        pytest.skip("offers Recommender, loaded when asked for: see test_light_imports")
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert module in FLOOR, f"give {module} a floor in FLOORS"
    upward = {other for other in own(path) - {module} if FLOOR[other] >= FLOOR[module]}
    assert not upward


@pytest.mark.parametrize("path", sorted((PACKAGE / "backbones").glob("*.py")), ids=name)
def test_backbones_hold_nothing_but_equations(path):
    assert own(path) <= BACKBONES_USE | {"backbones"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_torch_is_imported_only_inside_functions(path):
    at_the_top = {word.split(".")[0] for node in parse(path).body for word in imports(node) if not is_function(node)}
    assert not at_the_top & {"torch", "safetensors", "tensorboardX"}


def is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_pmap_stays_in_parallel(path):
    words = {node.attr for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
    words |= {word.rsplit(".", 1)[-1] for word in imports(parse(path))}
    assert path.name == "parallel.py" or not words & {"pmap", "shard_map"}
    assert not words & {"zero_out_padding", "get_fully_connected_graph"}, "these break on current jax"


def test_llm_stage_meets_us_over_files_only():
    """Beside the contract and the data it uses only the small helpers of every command; none imports jax or torch."""
    for path in LLM_STAGE:
        assert own(path) <= LLM_STAGE_USES, path
        assert not third_party(path) & {"jax", "flax", "optax", "jraph", "orbax"}, path


@pytest.mark.parametrize(
    "module", ["dmsrec_jax", "dmsrec_jax.data", "dmsrec_jax.artifacts", "dmsrec_jax.neighbors", "llm_stage.run"]
)
def test_light_imports(module):
    heavy = "{'jax', 'flax', 'torch', 'optax', 'orbax'}"
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_file_unpickles_or_evaluates():
    """The names that turn untrusted files into code occur nowhere; `srgnn_pickle` has an unpickler without classes."""
    for path in [*FILES, *LLM_STAGE]:
        tree = parse(path)
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not called & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert ast.unparse(node.value) == "True", path


def test_an_installed_package_has_the_files_it_reads():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for package, globs in packaged.items() for glob in globs for path in (ROOT / package).glob(glob)}
    assert {*FOLDER.glob("*.txt"), PACKAGE / "published.json"} <= found
    assert len({read_template(None, decode) for decode in ("structured", "free", "score")}) == 3
