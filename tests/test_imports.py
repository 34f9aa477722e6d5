"""The layers: who may import whom, what stays out of a process that needs no tensors, and what is never used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import plaudit

SRC = Path(plaudit.__file__).parent
FILES = sorted(SRC.rglob("*.py"))

# A module imports only from its own layer and those before it.
LAYERS = (
    "errors",
    "records",
    "rng",
    "config",
    "algo",
    "data",
    "run",
    "dist",
    "label",
    "models",
    "rollout",
    "guard",
    "rewards",
    "train",
    "view",
    "stages",
    "recipes",
    "api",
    "launch",
    "cli",
)


def module_name(file: Path, root: Path) -> str:
    """src/plaudit/algo/losses.py -> plaudit.algo.losses; a package is its own name."""
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, also inside its functions; `from a import b` is a.b."""
    name = module_name(file, root)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, *filter(None, [node.module]), alias.name])


def layer(dotted: str) -> str | None:
    """The layer of a module of ours, None for other people's and for the bare package."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "plaudit" and len(parts) > 1 else None


def breaches(files: list[Path], root: Path) -> list[str]:
    """Every import that goes up instead of down."""
    found = []
    for file in files:
        own = layer(module_name(file, root))
        for line, target in imports(file, root):
            wanted = layer(target)
            if wanted is None or own is None:
                continue
            if own not in LAYERS or wanted not in LAYERS:
                if wanted != "__version__":
                    found.append(f"{file.name}:{line}: {own} -> {wanted} is not in LAYERS")
            elif LAYERS.index(wanted) > LAYERS.index(own):
                found.append(f"{file.relative_to(root)}:{line}: {own} imports {target}, a later layer")
            elif own == "algo" and wanted != "algo":
                found.append(f"{file.relative_to(root)}:{line}: algo imports {target}; it is pure maths")
    return found


def test_every_module_imports_only_its_own_layer_and_earlier_ones() -> None:
    assert breaches(FILES, SRC) == []


def test_every_module_has_a_place_in_the_order() -> None:
    known = {*LAYERS, "__init__"}
    assert {file.stem if file.suffix else file.name for file in SRC.iterdir() if is_module(file)} <= known


def is_module(file: Path) -> bool:
    return file.suffix == ".py" or (file / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("run/x.py", "from plaudit.models.load import load_model"),
        ("run/x.py", "def f():\n    import plaudit.stages.ppo.loop"),
        ("records.py", "from plaudit import data"),
        ("records.py", "from . import data"),
        ("rollout/x.py", "from ..guard import monitors"),
        ("algo/x.py", "from plaudit import rng"),
        ("algo/__init__.py", "from ..records import Prompt"),
        ("surprise/x.py", "from plaudit.records import Prompt"),
    ],
)
def test_the_order_is_enforced(tmp_path: Path, place: str, line: str) -> None:
    """The check above finds a planted breach: absolute, relative, inside a function, in an unknown module."""
    root = tmp_path / "plaudit"
    file = root / place
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n", encoding="utf-8")
    assert len(breaches([file], root)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("stages/x.py", "from plaudit.models.load import load_model"),
        ("stages/x.py", "from plaudit.train.run import Run"),
        ("algo/x.py", "from .masked import whiten"),
        ("run/x.py", "import torch\nfrom plaudit import __version__"),
    ],
)
def test_the_order_allows_what_goes_down(tmp_path: Path, place: str, line: str) -> None:
    root = tmp_path / "plaudit"
    file = root / place
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n", encoding="utf-8")
    assert breaches([file], root) == []


# --- rooms: the folders inside a layer ---


def ways(files: list[Path], root: Path) -> dict[str, set[str]]:
    """Module -> the modules among `files` that it imports."""
    known = {module_name(file, root) for file in files}
    found: dict[str, set[str]] = {}
    for file in files:
        name = module_name(file, root)
        targets = {target if target in known else target.rpartition(".")[0] for _, target in imports(file, root)}
        found[name] = (targets & known) - {name, root.name}
    return found


def between_folders(files: list[Path], root: Path) -> dict[str, set[str]]:
    """Folder -> the other folders that a file in it imports from."""
    home = {module_name(file, root): str(file.relative_to(root).parent) for file in files}
    found: dict[str, set[str]] = {}
    for module, targets in ways(files, root).items():
        found.setdefault(home[module], set()).update({home[target] for target in targets} - {home[module]})
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way that ends where it began, [] where there is none."""
    done: set[str] = set()

    def search(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        found = next(filter(None, (search(target, [*way, node]) for target in sorted(graph.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (search(node, []) for node in sorted(graph))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(ways(FILES, SRC)) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert circle(between_folders(FILES, SRC)) == []


def test_circles_are_found(tmp_path: Path) -> None:
    root = tmp_path / "plaudit"
    for place, line in (("a/x", "plaudit.b.y"), ("b/y", "plaudit.c.z"), ("b/w", "plaudit.a"), ("c/z", "plaudit.b.w")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{place}.py").write_text(f"from {line} import anything\n", encoding="utf-8")
    files = sorted(root.rglob("*.py"))
    assert circle(ways(files, root)) == []
    assert circle(between_folders(files, root)) == ["b", "c", "b"]
    (root / "b/w.py").write_text("def f() -> None:\n    from plaudit.a import x\n", encoding="utf-8")
    assert circle(ways(files, root)) == ["plaudit.a.x", "plaudit.b.y", "plaudit.c.z", "plaudit.b.w", "plaudit.a.x"]


# --- what a process that needs no tensors must not load ---

LIGHT = ("plaudit", "plaudit.cli.main", "plaudit.stages.recipe", "plaudit.errors", "plaudit.records", "plaudit.rng")
LIGHT_PACKAGES = ("data", "run", "label", "recipes")
HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors", "matplotlib", "pandas", "gguf")


def light_modules() -> list[str]:
    inside = [module_name(file, SRC) for name in LIGHT_PACKAGES for file in sorted((SRC / name).rglob("*.py"))]
    return [*LIGHT, *inside]


def first_heavy(modules: list[str], heavy: tuple[str, ...] = HEAVY) -> str | None:
    """The first of `modules`, imported one after another in a fresh process, that brings a tensor library with it."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    if (heavy := [one for one in {heavy!r} if one in sys.modules]):\n"
        "        sys.exit(f'{name} loads {heavy[0]}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else None


def test_records_data_run_label_recipe_and_the_command_line_load_no_tensor_library() -> None:
    assert first_heavy(light_modules()) is None


def test_import_plaudit_is_light() -> None:
    """And `plaudit.run`, which is a folder of the package too, can be called whatever was imported before."""
    code = (
        "import sys, plaudit\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import plaudit.run.folder\n"
        "assert callable(plaudit.run) and plaudit.run.folder.STAGES[0] == 'sft'\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ppo_and_evaluation_load_nothing_that_shows_a_run() -> None:
    modules = ["plaudit.stages.ppo.loop", "plaudit.stages.evaluate.loop"]
    assert first_heavy(modules, ("plaudit.view", "matplotlib")) is None


def test_the_check_for_heavy_libraries_finds_one() -> None:
    found = first_heavy(["plaudit.errors", "plaudit.stages.recipe"], ("torch", "pydantic"))
    assert found == "plaudit.stages.recipe loads pydantic"


# --- what is never used ---

SERIALISERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}
FLAGS = {"allow_pickle", "trust_remote_code", "shell"}


def unsafe(file: Path, root: Path) -> list[str]:
    """Every use of a serialiser that runs code, of a built-in that does, or of a flag that lets others' code in."""
    found = [
        f"{line}: {name}"
        for line, name in imports(file, root)
        if name.split(".")[0] in SERIALISERS or name in LOADERS or name.startswith("builtins.")
    ]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.lineno}: {node.value.id}.{node.attr}"] * (f"{node.value.id}.{node.attr}" in LOADERS)
        elif isinstance(node, ast.Name) and node.id in RUNNERS:
            found.append(f"{node.lineno}: {node.id}")
        elif isinstance(node, ast.keyword) and node.arg in FLAGS:
            off = isinstance(node.value, ast.Constant) and node.value.value is False
            found += [] if off else [f"{node.value.lineno}: {node.arg}"]
    return found


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(SRC)) for file in FILES])
def test_no_pickle_no_code_from_data(file: Path) -> None:
    assert unsafe(file, SRC) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\nx = torch.load('x')",
        "from torch import load",
        "x = eval('1')",
        "exec('x = 1')",
        "run = eval",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
        "import yaml\nyaml.load('x', yaml.Loader)",
        "f(trust_remote_code=flag)",
    ],
)
def test_unsafe_lines_are_found(tmp_path: Path, line: str) -> None:
    file = tmp_path / "plaudit" / "x.py"
    file.parent.mkdir()
    file.write_text(line + "\n", encoding="utf-8")
    assert len(unsafe(file, file.parent)) == 1


def test_safe_lines_are_not_found(tmp_path: Path) -> None:
    file = tmp_path / "plaudit" / "x.py"
    file.parent.mkdir()
    file.write_text("import yaml\nmodel.eval()\nyaml.safe_load('x')\nf(trust_remote_code=False)\nre.compile('x')\n")
    assert unsafe(file, file.parent) == []


def test_nothing_runs_at_import_but_definitions() -> None:
    """House style: no module prints, reads or trains when it is imported; stdout and stderr stay empty."""
    done = subprocess.run([sys.executable, "-c", "import plaudit.cli.main"], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
