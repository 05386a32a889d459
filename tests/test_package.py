"""The layout of the package: who may import whom, what is installed, the cost of `import rlopt`, global randomness."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room -> rooms of rlopt that it may import. A new room is entered here, with what it stands on.
MAY_IMPORT: dict[str, set[str]] = {
    "": {"files"},  # rlopt itself, for `rlopt.load`
    "files": set(),
    "replay": {"files"},
    "optim": set(),
    "nn": set(),
    "sysid": {"replay"},  # estimators learn from replays, and "backwards" is defined there
    "data": set(),
    "rlopt_envs": set(),
    "agents": {"files", "replay", "optim", "nn"},
    "supervised": {"files", "optim", "nn", "data"},
    "study": set(),
}
# Modules directly in rlopt/ that put the rooms together; no room imports them.
ABOVE_ROOMS = {"__main__", "testing"}
# Top-level names that exist in the repository and are not installed.
NOT_INSTALLED = ("envs", "experiments", "tests", "scripts", "docs")

# Names of numpy.random that make or describe a generator. The state functions save and restore, they do not draw.
NUMPY_ALLOWED = {
    "default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "PCG64DXSM", "Philox", "SFC64",
    "get_state", "set_state",
}  # fmt: skip
PYTHON_ALLOWED = {"Random", "getstate", "setstate"}
TORCH_SEEDING = {"manual_seed", "seed", "initial_seed"}
TORCH_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli",
    "multinomial", "poisson",
}  # fmt: skip


# It goes on, for each agent, from the state that Stable-Baselines3 gave NumPy's global generator.
LIKE_STABLE_BASELINES3 = {"rlopt.agents.stacked": ["numpy.random.RandomState"]}


def library_modules(root: Path = ROOT) -> dict[str, Path]:
    """Map the full name of each module of rlopt and rlopt_envs to its file."""
    modules = {}
    for base, package in ((root, "rlopt"), (root / "envs", "rlopt_envs")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported_names(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the full names that a module imports; for `from a import b` both `a` and `a.b`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str | None:
    """Return the room that a full module name lies in; None outside rlopt and for `rlopt` itself."""
    parts = name.split(".")
    if parts[0] == "rlopt_envs":
        return "rlopt_envs"
    return parts[1] if parts[0] == "rlopt" and len(parts) > 1 else None


def import_violations(module: str, source: str, *, is_package: bool) -> list[str]:
    """List the imports of a module that the layout does not allow."""
    room = room_of(module)
    found = set()
    for name in imported_names(ast.parse(source), module, is_package=is_package):
        target = room_of(name)
        if name.split(".")[0] in NOT_INSTALLED:
            found.add(f"{module} imports {name}, which is not installed")
        elif room in ABOVE_ROOMS or target is None or target == room:
            continue
        elif target in ABOVE_ROOMS:
            found.add(f"{module} imports {name}, which stands above the rooms")
        elif target in MAY_IMPORT and target not in MAY_IMPORT.get(room or "", set()):
            found.add(f"{module} imports {name}")
    return sorted(found)


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a chain of attributes of a name, else the empty string."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return node.id if isinstance(node, ast.Name) else ""


def global_randomness(source: str) -> list[str]:
    """List the uses of global random state in a module: of numpy, of the module `random`, and of torch."""
    tree = ast.parse(source)
    full_name = {}  # name in this module -> what it stands for
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                full_name[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                full_name[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, rest = dotted(node.func).partition(".")
        if head not in full_name:
            continue
        name = full_name[head] + (f".{rest}" if rest else "")
        module, _, function = name.rpartition(".")
        draws = (
            (module == "numpy.random" and function not in NUMPY_ALLOWED)
            or (module == "random" and function not in PYTHON_ALLOWED)
            or (module == "torch" and function in TORCH_SEEDING)
            or (module == "torch" and function in TORCH_DRAWS and "generator" not in {k.arg for k in node.keywords})
        )
        if draws:
            found.append(f"line {node.lineno}: {name}")
    return found


def run_elsewhere(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code with this interpreter in another folder, without paths that the caller added."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


MODULES = library_modules()


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may_use(module: str) -> None:
    path = MODULES[module]
    assert import_violations(module, path.read_text(), is_package=path.name == "__init__.py") == []


def test_every_room_has_a_rule() -> None:
    rooms = {room_of(module) for module, path in MODULES.items() if path.parent != ROOT / "rlopt"} - {None}
    assert rooms <= set(MAY_IMPORT), f"enter the new room in MAY_IMPORT: {sorted(rooms - set(MAY_IMPORT))}"


@pytest.mark.parametrize("module", MODULES)
def test_module_draws_from_no_global_random_state(module: str) -> None:
    found = [draw.partition(": ")[2] for draw in global_randomness(MODULES[module].read_text())]
    assert found == LIKE_STABLE_BASELINES3.get(module, [])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlopt.replay.buffer", "from rlopt.optim import LocoProp"),
        ("rlopt.replay.buffer", "from rlopt import optim"),
        ("rlopt.replay.buffer", "from ..optim import spec"),
        ("rlopt.replay.buffer", "def late():\n    import rlopt.nn"),
        ("rlopt.agents.dqn", "import rlopt.study"),
        ("rlopt.study.grid", "from rlopt.agents import DQN"),
        ("rlopt.study.grid", "import experiments.replay"),
        ("rlopt_envs.lqr", "import rlopt.sysid"),
        ("rlopt.sysid.sgd", "import rlopt_envs"),
        ("rlopt.nn.moe", "import rlopt.testing"),
        ("rlopt._helper", "import rlopt.replay"),
    ],
)
def test_import_rule_sees_forbidden_import(module: str, source: str) -> None:
    assert len(import_violations(module, source, is_package=False)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlopt.agents.dqn", "from rlopt.replay import ReplayBatch"),
        ("rlopt.replay.buffer", "from . import storage\nfrom .storage import Storage\nimport numpy as np"),
        ("rlopt.replay.buffer", "from rlopt._typing import Array\nfrom rlopt import __version__"),
        ("rlopt.testing", "import rlopt.replay, rlopt.agents"),
    ],
)
def test_import_rule_accepts_allowed_import(module: str, source: str) -> None:
    assert import_violations(module, source, is_package=False) == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.random.rand(3)",
        "import numpy\nnumpy.random.seed(0)",
        "from numpy import random\nrandom.choice([1, 2])",
        "from numpy.random import normal as draw\ndraw()",
        "import random\nrandom.shuffle([])",
        "import torch as th\nth.manual_seed(0)",
        "import torch\ntorch.randn(3)",
    ],
)
def test_randomness_rule_sees_global_draw(source: str) -> None:
    assert len(global_randomness(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nrng = np.random.default_rng(0)\nrng.normal()",
        "import numpy as np\nnp.random.Generator(np.random.PCG64(np.random.SeedSequence(1)))",
        "import torch\ng = torch.Generator()\ng.manual_seed(0)\ntorch.randn(3, generator=g)",
    ],
)
def test_randomness_rule_accepts_own_generator(source: str) -> None:
    assert global_randomness(source) == []


def test_importing_rlopt_loads_no_heavy_library(tmp_path: Path) -> None:
    heavy = ["torch", "numpy", "pandas", "matplotlib", "stable_baselines3", "gymnasium", "numba"]
    result = run_elsewhere(f"import rlopt, sys; print([m for m in {heavy} if m in sys.modules])", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_version_is_that_of_the_installed_package() -> None:
    import rlopt

    assert rlopt.__version__ == importlib.metadata.version("rlopt")


def test_installed_top_level_packages_are_rlopt_and_rlopt_envs(tmp_path: Path) -> None:
    code = "import importlib.metadata as m; print(m.distribution('rlopt').read_text('top_level.txt'))"
    result = run_elsewhere(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == {"rlopt", "rlopt_envs"}


@pytest.mark.parametrize("name", NOT_INSTALLED)
def test_repository_folder_cannot_be_imported_from_elsewhere(name: str, tmp_path: Path) -> None:
    # A package of the same name may come from another distribution; it must not be the folder of this repository.
    result = run_elsewhere(f"import {name}; print(list({name}.__path__))", tmp_path)
    assert str(ROOT) not in result.stdout
    assert result.returncode == 0 or "ModuleNotFoundError" in result.stderr


@pytest.mark.parametrize("name", ["rlopt", "rlopt_envs"])
def test_installed_package_can_be_imported_from_elsewhere_and_is_typed(name: str, tmp_path: Path) -> None:
    code = f"import {name}, pathlib; print((pathlib.Path({name}.__file__).parent / 'py.typed').exists())"
    result = run_elsewhere(code, tmp_path)
    assert result.stdout.strip() == "True", result.stderr


def test_every_library_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
