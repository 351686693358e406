"""SAEs from and to other libraries: sentence-transformers' SparseEncoder, and SAELens.

What is read is numbers and JSON; nothing in a foreign folder is ever run.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import numpy as np

from memstore import layout
from memstore.errors import InvalidInput, InvalidWeights, MissingExtra, brief
from memstore.sae import weights
from memstore.sae.config import SAEConfig
from memstore.sae.encode import SAE

#: Where a SparseEncoder folder keeps the SAE as memstore knows it, with its own decoder.
OWN = "memstore"
MODULES = "modules.json"
SAELENS, SAELENS_WEIGHTS = "cfg.json", "sae_weights.safetensors"


def read(folder: Path) -> SAE:
    """Return the SAE in a folder of memstore, of a SparseEncoder, or of SAELens.

    Raises ``InvalidWeights`` for anything else, and for settings that memstore has no words for.
    """
    if (folder / MODULES).exists():
        return read_sparse_encoder(folder)
    if (folder / SAELENS).exists():
        return read_saelens(folder)
    return SAE.load(folder)


def read_settings(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ``InvalidWeights``."""
    settings = weights.read_json(file)
    if not isinstance(settings, dict):
        raise InvalidWeights(f"{file} holds no JSON object: copy the whole folder again")
    return settings


# --- SparseEncoder -------------------------------------------------------------------------


def read_sparse_encoder(folder: Path) -> SAE:
    """Return the SAE of a saved SparseEncoder.

    Its decoder is its encoder transposed, unless memstore wrote the folder and laid its own beside.
    """
    modules = weights.read_json(folder / MODULES)
    try:
        path = PurePath(next(m["path"] for m in modules if m["type"].endswith("SparseAutoEncoder")))
    except (StopIteration, KeyError, TypeError, AttributeError) as error:
        raise InvalidWeights(f"{folder / MODULES} names no SparseAutoEncoder") from error
    if path.is_absolute() or ".." in path.parts:
        raise InvalidWeights(
            f"{folder / MODULES} names a folder outside its own: {brief(str(path))}"
        )
    settings = read_settings(folder / path / "config.json")
    tensors = weights.read_tensors(folder / path / "model.safetensors")
    if settings.get("normalize"):
        raise InvalidWeights(
            "this SparseAutoEncoder normalises its layers (normalize=True): "
            "memstore has no SAE that does"
        )
    try:
        name = "encoder.weight" if "encoder.weight" in tensors else "decoder.linear.weight"
        encoder = tensors[name]
        config = SAEConfig("topk", settings["input_dim"], settings["hidden_dim"], k=settings["k"])
        named = {
            "encoder.weight": encoder,
            "encoder.bias": tensors["latent_bias"],
            "decoder.weight": encoder.T,
            "decoder.bias": tensors["pre_bias"],
        }
    except KeyError as error:
        raise InvalidWeights(f"{folder / path} lacks {error}") from error
    found = SAE(config, weights.checked(config, named))
    if (folder / OWN / weights.CONFIG).exists() and is_same_encoder(
        own := SAE.load(folder / OWN), found
    ):
        return own
    return found


def is_same_encoder(one: SAE, other: SAE) -> bool:
    """Return whether two SAEs give the same traces: trained on, a SparseEncoder is another."""
    names = ("encoder.weight", "encoder.bias", "decoder.bias")
    same = one.chooses_k and other.chooses_k and one.k == other.k
    return same and all(np.array_equal(one.tensors[n], other.tensors[n]) for n in names)


def write_sparse_encoder(sae: SAE, out: Path, model: str | None = None) -> None:
    """Write a folder that ``SparseEncoder(out)`` loads: text in, the same trace out.

    ``model`` is the sentence-transformers model to put before the SAE, a name or a folder; None
    for the shipped embedder, whose int8 weights are written out as float32. Texts beyond 256
    tokens are cut there, not split into windows. Raises ``InvalidInput`` for an SAE that stock
    modules cannot express, or of other dimensions than the model, ``MissingExtra`` without
    sentence-transformers.
    """
    if not sae.chooses_k:
        raise InvalidInput(
            f"a stock SparseEncoder keeps the k largest: it cannot be {sae.config.architecture}"
        )
    try:
        from sentence_transformers import SentenceTransformer, SparseEncoder
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
    except ImportError as error:
        raise MissingExtra("sentence-transformers", "train", "a SparseEncoder") from error
    import torch

    config = sae.config
    module = SparseAutoEncoder(config.dimension, config.neurons, k=sae.k, k_aux=0)
    names = {"encoder.weight": "encoder.weight", "decoder.linear.weight": "encoder.weight"}
    names |= {"latent_bias": "encoder.bias", "pre_bias": "decoder.bias"}
    state = {theirs: torch.from_numpy(sae.tensors[ours]) for theirs, ours in names.items()}
    module.load_state_dict({**module.state_dict(), **state})
    before = shipped_modules() if model is None else [*SentenceTransformer(model, device="cpu")]
    dimension = len(SentenceTransformer(modules=before, device="cpu").encode("a"))
    if dimension != config.dimension:
        raise InvalidInput(
            f"the model gives vectors of {dimension} dimensions, the SAE is for "
            f"{config.dimension}: name with --model the one it was trained on"
        )
    encoder = SparseEncoder(modules=[*before, module], device="cpu")
    encoder.save_pretrained(str(out), create_model_card=False)
    weights.save(out / OWN, config, sae.tensors)


def shipped_modules() -> list[Any]:
    """Return the shipped embedder as sentence-transformers modules, its weights as float32."""
    import tempfile

    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    from memstore.embed.bert import bert_weights
    from memstore.embed.onnx import TOKENIZER, WINDOW

    folder = layout.EMBEDDER_FOLDER
    state = bert_weights(folder)
    words, width = state["embeddings.word_embeddings.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=state["encoder.layer.0.intermediate.dense.bias"].shape[0],
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
    )
    bert = BertModel(config)
    # Nobody asks BERT's own pooler, but a folder without one is loaded with a warning.
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    tensors["pooler.dense.weight"] = torch.zeros(width, width)
    tensors["pooler.dense.bias"] = torch.zeros(width)
    bert.load_state_dict(tensors)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # as it comes
        tokenizer_file=str(folder / TOKENIZER),
        model_max_length=WINDOW,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
    )
    noisy = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as it comes
    with tempfile.TemporaryDirectory() as place:
        bert.save_pretrained(place)
        tokenizer.save_pretrained(place)
        transformer = Transformer(place, max_seq_length=WINDOW)
    if noisy:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # as it comes
    return [transformer, Pooling(width, "mean"), Normalize()]


# --- SAELens -------------------------------------------------------------------------------


def read_saelens(folder: Path) -> SAE:
    """Return a TopK SAE that SAELens saved: ``cfg.json`` and ``sae_weights.safetensors``.

    What SAELens does around the k largest is folded into the weights: no bias taken from the input
    (``apply_b_dec_to_input``), activations scaled by decoder norms
    (``rescale_acts_by_decoder_norm``).
    """
    settings = read_settings(folder / SAELENS)
    tensors = weights.read_tensors(folder / SAELENS_WEIGHTS)
    kind, arguments = settings.get("architecture"), settings.get("activation_fn_kwargs")
    k = settings.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    if kind != "topk" or k is None:
        raise InvalidWeights(
            f"{folder} is a SAELens SAE of architecture {brief(kind)}: only topk is read"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if settings.get(name, "none") != "none":
            raise InvalidWeights(
                f"{folder} was trained with {name}={brief(settings[name])}: fold it "
                "into the weights with SAELens first"
            )
    try:
        shapes = {name: tensors[name].shape for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    except KeyError as error:
        raise InvalidWeights(f"{folder / SAELENS_WEIGHTS} lacks {error}") from error
    # Compared before any arithmetic, which would make what fits of them.
    d, n = tensors["b_dec"].size, tensors["b_enc"].size
    if shapes != {"W_enc": (d, n), "W_dec": (n, d), "b_enc": (n,), "b_dec": (d,)}:
        raise InvalidWeights(f"{folder / SAELENS_WEIGHTS} has shapes that do not fit: {shapes}")
    floats = {name: tensors[name].astype(np.float32) for name in shapes}
    encoder, decoder = floats["W_enc"].T, floats["W_dec"]
    bias, centre = floats["b_enc"], floats["b_dec"]
    if not settings.get("apply_b_dec_to_input", True):
        bias = bias + encoder @ centre
    if settings.get("rescale_acts_by_decoder_norm", False):
        norms = np.linalg.norm(decoder, axis=1)
        encoder, bias, decoder = encoder * norms[:, None], bias * norms, decoder / norms[:, None]
    config = SAEConfig("topk", d, n, k=k)
    named = {
        "encoder.weight": encoder,
        "encoder.bias": bias,
        "decoder.weight": decoder.T,
        "decoder.bias": centre,
    }
    return SAE(config, weights.checked(config, named))
