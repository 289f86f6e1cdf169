"""Imports point one way: a room knows nothing of those above it, and only its own plugin imports a framework."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "energy_plugins"
ROOT = Path(__file__).parents[1] / PACKAGE

LEVELS = {
    # Level 0 knows nothing of ours, not even of each other.
    "errors": 0,
    "lazy": 0,
    "units": 0,
    # Raises what the error tree holds.
    "_native": 1,
    # Pure: it knows no device, so nothing of measuring either.
    "tune": 1,
    # Beside measuring: neither knows the other.
    "config": 2,
    "measure": 2,
    # The only one that changes a GPU.
    "control": 3,
    # Run by root: it imports nothing of ours, and nothing but the command line imports it.
    "powerd": 0,
    # Ranks that tell each other of their measurements.
    "rank_mail": 3,
    "distributed": 4,
    # Renders and exports what was measured.
    "report": 4,
    "training": 5,
    "lightning": 6,
    "transformers": 6,
    "accelerate": 6,
    # Trials are trainings of any framework.
    "optuna": 7,
    "ray": 7,
    # They find the plugin of whatever framework a program uses.
    "lightning_factory": 7,
    "run": 7,
    "testing": 7,
    # A training to look at: it may use a framework, and simulated GPUs where there are no others.
    "demo": 8,
    "cli": 9,
    "__main__": 10,
}

# Values that users ask to make themselves need what is above them, and import it only then.
UPWARD = {
    "measure/meter.py": {"energy_plugins.distributed.RankExchange"},
    "measure/report.py": {"energy_plugins.report.html.write_html", "energy_plugins.report.png.write_png"},
    "transformers/hp_space.py": {"energy_plugins.ray.domains.choice", "energy_plugins.ray.domains.quotient"},
    "tune/memory_hierarchy.py": {"energy_plugins.measure.memory_levels.memory_levels"},
    "tune/working_set.py": {"energy_plugins.training.working_set.traced.traced"},
}

# For tests, examples, benchmarks and the demo: nothing else of ours may import it, wherever it stands.
RESERVED = {"testing": {"testing", "demo"}}

FRAMEWORK_ROOMS = {
    # Who may import a framework. Whatever is not listed here is no framework.
    "lightning": {"lightning", "optuna", "ray", "demo"},
    "pytorch_lightning": {"lightning"},
    "torch": {"training", "lightning", "transformers", "accelerate", "rank_mail", "demo"},
    "transformers": {"transformers", "optuna", "ray"},
    # "cli" for its launcher, which `energy-launch` extends.
    "accelerate": {"transformers", "accelerate", "cli"},
    "optuna": {"optuna"},
    "ray": {"ray"},
    "jax": set[str](),
    "tensorflow": set[str](),
}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every module or attribute that an import statement names, wherever it stands."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                if level:
                    raise AssertionError(f"line {node.lineno}: a relative import; the full name says where it points")
                yield from (f"{module}.{alias.name}" for alias in names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """Return the tree less its `if TYPE_CHECKING:` blocks, which never run."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            is_guard = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_guard else self.generic_visit(node)

    stripped = Strip().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(stripped, ast.Module)
    return stripped


def room_of(module: str) -> str | None:
    """Return the room of a dotted name of ours, None for the package itself or a stranger."""
    head, _, rest = module.partition(".")
    return rest.partition(".")[0] or None if head == PACKAGE else None


def complaints(room: str, imports: Iterable[str]) -> list[str]:
    """Say what a module of ``room`` imports that it must not."""
    found = []
    for module in imports:
        top = module.partition(".")[0]
        if top in FRAMEWORK_ROOMS and room not in FRAMEWORK_ROOMS[top]:
            found.append(f"{room} imports {module}, which only its own plugin may")
        if top != PACKAGE:
            continue
        target = room_of(module)
        if target is None or target not in {*LEVELS, "__version__"}:
            found.append(f"{room} imports {module}, not a room: import the module that holds the name")
        elif target in LEVELS and target != room and LEVELS[target] >= LEVELS[room]:
            found.append(f"{room} imports {module}, which is not below it")
        elif room not in RESERVED.get(target, {room}):
            found.append(f"{room} imports {module}, which it may not")
    return found


def modules() -> list[Path]:
    return sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyi")])


def room_of_file(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].partition(".")[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path == ROOT / "__init__.py":
        assert not [name for name in imported_modules(without_type_checking(tree)) if name.startswith(PACKAGE)]
        return
    room = room_of_file(path)
    assert room in LEVELS, f"{path.name} is in no room: give it one here and in ARCHITECTURE.md"
    allowed = UPWARD.get(path.relative_to(ROOT).as_posix(), set())
    assert complaints(room, [name for name in imported_modules(tree) if name not in allowed]) == []


def test_modules_of_a_room_do_not_form_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        tree = without_type_checking(ast.parse(path.read_text(encoding="utf-8")))
        upward = UPWARD.get(path.relative_to(ROOT).as_posix(), set())
        graph[name] = {module for module in imported_modules(tree) if module.startswith(f"{PACKAGE}.")} - upward
    # `from module import name` names the name: what counts is the module that holds it.
    graph = {
        name: {module if module in graph else module.rpartition(".")[0] for module in imports} - {name, PACKAGE}
        for name, imports in graph.items()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("measure", "from energy_plugins.lightning import EnergyMonitor", "not below it"),
        ("measure", "from energy_plugins import lightning", "not below it"),
        ("measure", "from energy_plugins import EnergyMeter", "not a room"),
        ("measure", "import energy_plugins", "not a room"),
        ("measure", "def late() -> None:\n    import torch.cuda", "only its own plugin"),
        ("lightning", "import energy_plugins.testing.loads", "not below it"),
        ("units", "from energy_plugins.errors import EnergyError", "not below it"),
        ("measure", "from energy_plugins.testing import simulated_gpus", "not below it"),
        ("testing", "import pytorch_lightning", "only its own plugin"),
        ("cli", "def late() -> None:\n    from energy_plugins.testing import simulated_gpus", "which it may not"),
        ("cli", "import torch", "only its own plugin"),
        ("demo", "from energy_plugins.cli.main import main", "not below it"),
        ("tune", "from energy_plugins.measure.devices import visible_gpus", "not below it"),
        ("tune", "from energy_plugins import _native", "not below it"),
    ],
)
def test_an_import_upward_is_found(room: str, source: str, complaint: str) -> None:
    (found,) = complaints(room, imported_modules(ast.parse(source)))
    assert complaint in found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("measure", "from energy_plugins import _native"),
        ("measure", "from energy_plugins.measure.trace import Trace"),
        ("lightning", "import torch\nfrom lightning.pytorch import Callback\nfrom energy_plugins.measure import meter"),
        ("testing", "from energy_plugins.measure.drivers import use_drivers"),
        ("testing", "from energy_plugins.testing.loads import Constant"),
        ("measure", "from energy_plugins import __version__"),
        ("demo", "import torch\nfrom energy_plugins.testing import simulated_gpus"),
        ("cli", "from energy_plugins.demo import demo\nfrom energy_plugins.measure.meter import EnergyMeter"),
    ],
)
def test_an_import_downward_is_fine(room: str, source: str) -> None:
    assert complaints(room, imported_modules(ast.parse(source))) == []
