"""SAEs from and to other libraries."""

from __future__ import annotations

from pathlib import Path

import click

from memstore.cli.options import json_option
from memstore.cli.output import print_result
from memstore.errors import InvalidInput


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["memstore", "sparse-encoder"]),
    default="memstore",
    show_default=True,
    help="What to write.",
)
@click.option(
    "--model",
    help="sentence-transformers model to put before the SAE of a SparseEncoder. Default: the "
    "shipped embedder.",
)
@json_option
def convert_command(source: Path, out: Path, to: str, model: str | None, as_json: bool) -> None:
    """Bring the SAE in SOURCE into another library's format.

    SOURCE is a weights folder of memstore, a SparseEncoder of sentence-transformers, or a TopK SAE
    of SAELens. With `--to sparse-encoder`, `SparseEncoder("OUT")` then gives the same traces.
    """
    from memstore import interchange
    from memstore.sae import weights

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} exists: name a folder that does not")
    sae = interchange.read(source)
    if to == "sparse-encoder":
        interchange.write_sparse_encoder(sae, out, model)
    elif model is not None:
        raise InvalidInput(
            "--model goes before the SAE of a SparseEncoder: add --to sparse-encoder"
        )
    else:
        weights.save(out, sae.config, sae.tensors)
    config = sae.config
    line = (
        f"{out}: {config.architecture}, {config.neurons} neurons on {config.dimension} dimensions"
    )
    print_result(line, {"out": str(out), "format": to, **config.to_dict()}, as_json=as_json)
