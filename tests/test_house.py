"""The house: arrows point down, names are listed, docs are true, heavy things stay outside."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

import memstore
from memstore.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "memstore"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: design.md section 4. A module may import from lower levels, from its own room, and, at level 3,
#: from its neighbours (without a cycle).
LEVELS = {
    0: {"__init__", "durable", "errors", "hits", "types", "layout", "progress"},
    1: {"core", "jobs"},
    2: {"catalog", "index", "embed", "sae", "generate", "neurons"},
    3: {
        "audit", "backups", "batches", "care", "composites", "directions", "diversity",
        "duplicates", "encoder", "evaluation", "experiments", "exports", "files", "generation",
        "indices", "interchange",
        "labelling", "lenses", "links", "loading", "meaning", "model_labels", "narrative_api",
        "nearness", "neuron_view", "novelty", "opening", "options", "reader", "reasons",
        "recovery", "reencoding", "rows", "search", "store", "tables", "training", "upkeep",
        "view", "writer",
    },
    4: {"cli", "web", "mcp", "integrations"},
    5: {"__main__"},
}  # fmt: skip
HEAVY = {"torch", "faiss", "onnxruntime", "sqlalchemy", "openai", "alembic", "tokenizers", "numpy"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def level(module: str) -> int:
    return next(number for number, rooms in LEVELS.items() if room(module) in rooms)


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(file: Path, *, top_only: bool = False) -> set[str]:
    """Own modules that a file imports, TYPE_CHECKING blocks left out."""
    tree = ast.parse(file.read_text("utf-8"))
    typing_only = [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    ]
    nodes = ast.iter_child_nodes(tree) if top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("memstore"):
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                known = (ROOT / Path(*deeper.split("."))).with_suffix(".py")
                found.add(
                    deeper if known.exists() or (known.with_suffix("")).is_dir() else node.module
                )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("memstore")}
    return found


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_arrows_point_down(file):
    """No import goes up a level, or sideways between rooms of levels 1 and 2."""
    own = name_of(file)
    for other in imports(file):
        if room(other) == room(own):
            continue
        assert level(other) <= level(own), f"{own} -> {other}"
        if level(own) in (1, 2, 4):
            assert level(other) < level(own), f"{own} -> {other}"


def test_no_import_goes_in_a_circle():
    """The graph of module-level imports has no cycle."""
    graph = {name_of(file): imports(file, top_only=True) for file in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_public_names_are_listed_sorted_and_importable():
    """``__all__`` is what the package offers, and each name comes from where it says."""
    assert memstore.__all__ == sorted(memstore.__all__)
    assert len(memstore.__all__) <= 15
    assert set(memstore._HOME) | {"__version__"} == set(memstore.__all__)
    for name, home in memstore._HOME.items():
        assert getattr(memstore, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError):
        _ = memstore.nothing


def test_the_drawing_of_errors_is_the_tree():
    """Every error stands in the docstring, indented under its parent."""
    from memstore import errors

    lines = [
        (len(match[1]), match[2])
        for match in re.finditer(r"^    ([│├└─ ]*)(\w+)", errors.__doc__, re.M)
    ]
    drawn, path = {}, {}
    for depth, name in lines:
        path[depth // 4] = name
        drawn[name] = path.get(depth // 4 - 1)
    real = {
        name: value.__mro__[1].__name__ if name != "MemstoreError" else None
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MemstoreError)
    }
    assert drawn == real


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top-level modules a fresh Python has loaded after running some code."""
    report = "import sys; print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_memstore_loads_nothing_heavy():
    """``import memstore`` costs nothing."""
    assert not loaded_by("import memstore") & HEAVY


RUN = """
import sys
from memstore.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.parametrize(
    "command",
    [["top", "15"], ["composite", "+15 -5"], ["neuron", "15"], ["show", "1"], ["list"], ["stats"]],
    ids=lambda command: command[0],
)
def test_neuron_queries_load_no_embedder_no_faiss_no_alembic(narrative_store, command):
    """From the shell, a question about neurons loads numpy and SQLAlchemy only."""
    loaded = loaded_by(RUN, command[0], str(narrative_store), *command[1:])
    assert not loaded & (HEAVY - {"numpy", "sqlalchemy"})


def test_opening_a_store_loads_nothing_that_is_asked_for_now_and_then():
    """No jobs, no labelling, no audit: their imports took milliseconds of every query."""
    report = "import sys, memstore.store; print(*(m for m in sys.modules if 'memstore.' in m))"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT
    )
    rooms = {module.split(".")[1] for module in done.stdout.split()}
    assert not rooms & {"jobs", "generate", "labelling", "model_labels", "audit", "meaning"}


def test_a_text_query_loads_no_torch(narrative_store):
    """Only what embeds: onnxruntime and tokenizers, and FAISS to search."""
    loaded = loaded_by(RUN, "search", str(narrative_store), "a quarrel")
    assert not loaded & {"torch", "sentence_transformers", "alembic", "openai"}
    assert {"onnxruntime", "faiss"} <= loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_stands_in_the_docs(command):
    """``--help`` works for each, and docs/cli.md has a section for it."""
    from click.testing import CliRunner

    from memstore.cli import cli

    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.split("Options:")[0].split()) > 5
    assert f"## {command}\n" in (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_the_readme_is_short_and_its_python_runs(tmp_path, monkeypatch):
    """At most 150 lines; its Python block does what it shows; pip install is the right name."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 150
    assert not re.search(r"pip install memstore\b(?!-sae)", readme)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_links_between_documents_lead_somewhere():
    """Every relative link of README and docs/ is a file."""
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_constraints_pin_every_dependency():
    """What is tested is written down exactly, inside the honest ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    extras = chain.from_iterable(project["optional-dependencies"].values())
    wanted = [*project["dependencies"], *extras]
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0].lower()
        if name != "memstore-sae":
            assert name in pinned, name


def test_modules_and_functions_can_be_read_in_one_sitting():
    """At most 350 lines a module and 60 a function."""
    for file in MODULES:
        text = file.read_text("utf-8")
        assert text.count("\n") <= 350, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{file}: {node.name}"


def test_the_samples_are_450_varied_narratives(narratives):
    """150 a category, 20 to 120 words, no two alike, in the prototype's shape."""
    assert len(narratives) == 450
    by_category = {}
    for row in narratives:
        assert set(row) == {"text", "category"}
        assert 20 <= len(row["text"].split()) <= 120
        by_category.setdefault(row["category"], []).append(row["text"])
    assert {name: len(texts) for name, texts in by_category.items()} == {
        "Strong Emotional": 150,
        "Complex/Chaotic": 150,
        "Routine": 150,
    }
    words = [set(re.findall(r"[a-z']{4,}", row["text"].lower())) for row in narratives]
    for i, one in enumerate(words):
        for other in words[:i]:
            assert len(one & other) <= 0.3 * len(one | other)
    openings = [" ".join(row["text"].split()[:3]) for row in narratives]
    assert len(set(openings)) > 400
