"""Compare `_native.pyi` with the compiled module: names by mypy's stubtest, parameters by the signatures it documents.

stubtest cannot see the parameters of compiled functions; pybind11 writes them in the first line of each docstring.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import energy_plugins
from energy_plugins import _native

STUB = Path(energy_plugins.__file__).with_name("_native.pyi")
CONFIG = Path(__file__).parents[1] / "pyproject.toml"
ALLOWED = Path(__file__).with_name("stubtest_allowlist.txt")


def stub_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the dotted name and the definition of each function and method in a stub."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from stub_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}{node.name}", node


def is_called(definition: ast.FunctionDef) -> bool:
    """Tell a function from a property and from one of several overloads."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in definition.decorator_list}
    return not decorators & {"property", "setter", "overload"}


def parameters(definition: ast.FunctionDef) -> tuple[list[str], list[str], int]:
    """Return the names that may be given by position, those by keyword only, and how many have defaults."""
    names = definition.args
    positional = [argument.arg for argument in (*names.posonlyargs, *names.args) if argument.arg != "self"]
    keyword_only = [argument.arg for argument in names.kwonlyargs]
    return positional, keyword_only, len(names.defaults) + sum(default is not None for default in names.kw_defaults)


def documented(qualified_name: str) -> ast.FunctionDef | None:
    """Parse the signature in the first line of a compiled function's docstring; None if there is none."""
    thing: object = _native
    for name in qualified_name.split("."):
        thing = getattr(thing, name, None)
    first_line = (thing.__doc__ or "").partition("\n")[0]
    try:
        (definition,) = ast.parse(f"def {first_line}: ...").body
    except SyntaxError:
        return None
    return definition if isinstance(definition, ast.FunctionDef) else None


def complaints() -> Iterator[str]:
    """Yield one sentence for each function whose parameters differ."""
    for name, in_stub in stub_functions(ast.parse(STUB.read_text(encoding="utf-8")).body):
        if not is_called(in_stub):
            continue
        compiled = documented(name)
        if compiled is None:
            yield f"{name}: the module has none, or it documents no signature that Python can parse"
        elif parameters(in_stub) != parameters(compiled):
            yield f"{name}: the stub has {ast.unparse(in_stub.args)}, the module {ast.unparse(compiled.args)}"


def main() -> int:
    """Print what differs; return 1 if anything does."""
    options = ["--mypy-config-file", str(CONFIG), "--allowlist", str(ALLOWED)]
    stubtest = subprocess.run([sys.executable, "-m", "mypy.stubtest", *options, _native.__name__], check=False)
    found = list(complaints())
    for complaint in found:
        print(complaint)
    return 1 if found or stubtest.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
