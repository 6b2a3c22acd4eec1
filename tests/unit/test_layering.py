"""The packages depend on each other in one direction, and the pure core touches nothing outside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    "raidlib": {"raidlib"},
    "replicator/core": {"replicator.core"},
    "replicator/journal": {"replicator.core", "replicator.journal"},
    "replicator/capture": {"replicator.core", "replicator.journal", "replicator.capture"},
    "replicator/daemon": {
        "replicator.core",
        "replicator.journal",
        "replicator.control",
        "replicator.eventlog",
        "replicator.notify",
        "replicator.daemon",
    },
    "replicator/attach": {"replicator", "replicator.attach", "replicator.core.errors"},
    "nbdplugin": {
        "raidlib",
        "nbdplugin",
        "replicator.core",
        "replicator.journal",
        "replicator.capture",
        "replicator.control",
        "replicator.eventlog",
        "replicator.notify",
    },
}
OURS = ("raidlib", "replicator", "nbdplugin")
IMPURE = {
    "asyncio",
    "multiprocessing",
    "os",
    "pathlib",
    "select",
    "shutil",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a source file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_package_imports_only_what_it_may(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name in imports_of(path):
            ours = name.split(".")[0] in OURS
            if ours and not any(name == ok or name.startswith(ok + ".") for ok in ALLOWED[folder]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_core_is_pure() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in sorted((ROOT / "replicator/core").glob("*.py"))
        for name in imports_of(path)
        if name.split(".")[0] in IMPURE
    ]
    assert not wrong, "\n".join(wrong)
