"""Where things lie: the store's files, the shipped models and samples, the migrations."""

from pathlib import Path

PACKAGE = Path(__file__).parent

#: Shipped encoder: the embedder's folder and the SAE's weights folder.
EMBEDDER_FOLDER = PACKAGE / "models" / "minilm-l6-v2"
SAE_FOLDER = PACKAGE / "models" / "sae-3072-k32"
#: What its neurons were read to mean.
DICTIONARY = SAE_FOLDER / "labels.jsonl"
#: Expressions over them that ship under a name.
LENSES = SAE_FOLDER / "lenses.jsonl"
#: A 30-neuron SAE over the sample narratives, for the prototype's door.
NARRATIVES_SAE_FOLDER = PACKAGE / "models" / "narratives-30"
#: 450 narratives written for this project, in the prototype's JSON shape.
NARRATIVES = PACKAGE / "samples" / "narratives.json"
#: Plans for `memstore generate`.
PLANS = PACKAGE / "plans"

#: Weights locations inside the package are recorded with this prefix, never as absolute paths:
#: a store moves between machines, the package lies elsewhere on each.
BUILTIN = "builtin:"


def index_folder(store: Path) -> Path:
    """Return the folder of derived index files beside a store; deleting it loses nothing."""
    return store.with_name(store.name + "-index")


def resolve_model(location: str) -> Path:
    """Return the folder that a recorded weights location means on this machine."""
    if location.startswith(BUILTIN):
        return PACKAGE / "models" / location.removeprefix(BUILTIN)
    return Path(location)


def named_model(name: str | Path) -> Path:
    """Return the weights at a path, or those of a shipped SAE by its name (``sae-3072-k64``)."""
    shipped = PACKAGE / "models" / name
    return shipped if not Path(name).exists() and shipped.is_dir() else Path(name)


def model_location(folder: Path) -> str:
    """Return what to record for a weights folder: ``builtin:NAME`` or its absolute path."""
    folder = folder.resolve()
    if folder.parent == (PACKAGE / "models").resolve():
        return BUILTIN + folder.name
    return str(folder)


def migrations_folder() -> Path:
    """Return the Alembic folder: inside the package in a wheel, beside it in a checkout."""
    shipped = PACKAGE / "migrations"
    return shipped if shipped.is_dir() else PACKAGE.parent / "migrations"
