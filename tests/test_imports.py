"""How the library's modules import each other: doors, and no circles."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules():
    """Every module by its dotted name, with its syntax tree."""
    found = {}
    for path in sorted((ROOT / "finslerconv").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()
PACKAGES = {name.rpartition(".")[0] for name in MODULES} | {"finslerconv"}


def package_of(module):
    """The package in which a module is: a package is in itself."""
    return module if module in PACKAGES else module.rpartition(".")[0]


def at_import(node):
    """The statements that run as a module is imported: not in functions, not for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def imported(nodes):
    """The library's modules that statements import."""
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        yield from (name for name in names if name.partition(".")[0] == "finslerconv")


def test_the_walk_sees_imports():
    assert len(MODULES) > 100
    found = set(imported(ast.walk(MODULES["finslerconv.nn._metric_conv"])))
    assert "finslerconv.metrics" in found
    assert "finslerconv._tracing" in set(imported(ast.walk(MODULES["finslerconv.nn._adaptive"])))


def test_private_modules_are_imported_within_their_package_only():
    offences = set()
    for module, tree in MODULES.items():
        package = package_of(module)
        for name in imported(ast.walk(tree)):
            parts = name.split(".")
            private = [i for i, part in enumerate(parts) if part.startswith("_")]
            # What is directly under finslerconv serves all packages.
            if private and private[0] > 1:
                owner = ".".join(parts[: private[0]])
                if package != owner and not package.startswith(f"{owner}."):
                    offences.add((package, ".".join(parts[: private[0] + 1])))
    assert not offences


def test_no_circle_of_imports():
    wanted = {name: set(imported(at_import(tree))) for name, tree in MODULES.items()}
    done = set()

    def visit(name, way):
        if name in done:
            return
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        for other in sorted(wanted[name]):
            visit(other, [*way, name])
        done.add(name)

    for name in wanted:
        visit(name, [])
