"""Who may import whom: the layers of docs/architecture.md, read from the source with `ast`."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "stable_audio_tools"
LOWER = {
    "configs": set(),
    "nn": {"configs"},
    "diffusion": {"configs"},
    "audio": {"configs"},
    "models": {"configs", "nn", "diffusion", "audio"},
    "adapters": {"configs", "models"},
    "inference": {"configs", "nn", "diffusion", "audio", "models"},
    "data": {"configs", "nn", "diffusion", "audio"},
    "evaluation": {"configs", "nn", "diffusion", "audio", "models", "inference", "data"},
    "report": {"configs", "audio"},
    "export": {"configs", "nn", "models", "report"},
    "interface": {"configs", "diffusion", "audio", "models", "adapters", "inference"},
    "training": {"configs", "nn", "diffusion", "audio", "models", "adapters", "inference", "data", "evaluation", "report"},
    "cli": {
        "configs",
        "nn",
        "diffusion",
        "audio",
        "models",
        "adapters",
        "inference",
        "data",
        "evaluation",
        "report",
        "export",
        "interface",
        "training",
    },
}
SLOW_TO_IMPORT = {"torchaudio", "scipy", "matplotlib", "lightning", "wandb", "PIL", "soundfile", "soxr", "transformers"}
POSIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Full module names imported anywhere in a file; relative ones resolved."""
    found = set()
    package = ("stable_audio_tools", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            found.add(".".join([*base, node.module or ""]).strip("."))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_layers_below(path):
    name = layer(path)
    tree = ast.parse(path.read_text())
    others = {m.split(".")[1] for m in imported(tree, path) if m.startswith("stable_audio_tools.")} - {name}
    if name:
        assert others <= LOWER[name] | {"__init__"}
    if name not in ("training", "cli"):
        assert not {m for m in imported(tree, path) if m.split(".")[0] in ("lightning", "pytorch_lightning")}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if layer(p) in ("", "configs", "nn", "diffusion", "audio", "models", "adapters", "inference")],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_slow_packages_are_imported_where_they_are_used(path):
    body = ast.parse(path.read_text()).body
    top = {
        m.split(".")[0] for node in body if isinstance(node, ast.Import | ast.ImportFrom) for m in imported(ast.Module([node], []), path)
    }
    assert not top & SLOW_TO_IMPORT


@pytest.mark.parametrize("path", [p for p in FILES if layer(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_in_their_file_and_imports_work_on_windows(path):
    tree = ast.parse(path.read_text())
    ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("stable_audio_tools"))]
    assert not [alias.name for node in ours for alias in node.names if alias.name.startswith("_") and not alias.name.endswith("__")]
    assert not {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names} & POSIX_ONLY
