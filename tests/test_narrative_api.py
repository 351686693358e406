"""The prototype's door, against a direct computation in torch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memstore import NarrativeMemoryAPI, layout
from memstore.embed.onnx import OnnxEmbedder
from memstore.errors import InvalidFile, InvalidInput, InvalidWeights

torch = pytest.importorskip("torch", reason="the original ran in torch")


class Original(torch.nn.Module):
    """Embedding -> projection (ReLU) -> encoder (ReLU), as the prototype's document says."""

    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(384, 300)
        self.encoder = torch.nn.Linear(300, 30)
        self.decoder = torch.nn.Linear(30, 300)

    def forward(self, vectors):
        return torch.relu(self.encoder(torch.relu(self.projection(vectors))))


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = Original()
    with torch.no_grad():
        model.encoder.bias.sub_(0.02)
    return model


@pytest.fixture(scope="module")
def api(original, tmp_path_factory, narratives):
    """The door over the prototype's own file kinds: a ``.pth`` state dict and a JSON array."""
    folder = tmp_path_factory.mktemp("prototype")
    torch.save(original.state_dict(), folder / "sae_text_finetuned.pth")
    (folder / "narratives.json").write_text(json.dumps(narratives[:120]))
    return NarrativeMemoryAPI(folder / "sae_text_finetuned.pth", folder / "narratives.json")


@pytest.fixture(scope="module")
def memory_trace(original, narratives):
    vectors = OnnxEmbedder(layout.EMBEDDER_FOLDER).embed([r["text"] for r in narratives[:120]])
    with torch.no_grad():
        # Activations are stored as float16, which is what scores.
        return original(torch.from_numpy(vectors)).half().float()


def same_ranking(indices, scores, expected, k):
    """Scores in order, each the score of its index; equal scores may come in any order in torch."""
    values, _ = torch.topk(expected, k)
    assert np.allclose(scores, values.numpy(), atol=1e-3)
    assert np.allclose(scores, expected.numpy()[indices], atol=1e-3)
    assert len(set(indices.tolist())) == k


@pytest.mark.parametrize("neuron", [0, 10, 15, 29])
def test_top_k_of_a_neuron_is_what_torch_finds(api, memory_trace, neuron):
    """Indices and activations, silent narratives filling up to k."""
    for k in (1, 5, 120):
        indices, activations = api.retrieve_top_k_memories(neuron_index=neuron, k=k)
        same_ranking(indices, activations, memory_trace[:, neuron], k)


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        ([15], [5]),
        ([13, 27], []),
        ([13], [4, 27]),
        ([], [10, 16]),
        ([3, 4], [4, 5, 6]),
        ([1, 2], [1]),
        ([1], [1]),
        ([1, 1, 2], [3]),
    ],
)
def test_composites_are_what_torch_finds(api, memory_trace, positive, negative):
    """Mean of the positive less mean of the negative, over every narrative."""
    expected = torch.zeros(len(memory_trace))
    if positive:
        expected = expected + memory_trace[:, positive].mean(dim=1)
    if negative:
        expected = expected - memory_trace[:, negative].mean(dim=1)
    for k in (3, 120):
        indices, scores = api.retrieve_memories_composite(positive, negative, k)
        same_ranking(indices, scores, expected, k)


def test_results_support_item_and_format(api):
    """The prototype's usage code runs unchanged."""
    indices, scores = api.retrieve_memories_composite(
        positive_neurons=[15], negative_neurons=[5], k=3
    )
    for idx, score in zip(indices, scores, strict=True):
        assert api.get_narrative_text(idx.item()) == api.narratives[idx.item()]["text"]
        assert f"{score:.4f}"


def test_without_arguments_it_opens_on_the_samples():
    """The shipped 30 neurons and 450 narratives; neurons 10, 15 and 5 fire for some."""
    api = NarrativeMemoryAPI()
    assert len(api.narratives) == 450
    indices, activations = api.retrieve_top_k_memories(neuron_index=10, k=5)
    assert activations[0] >= activations[4] > 0
    assert len(indices) == 5


def test_wrong_input_is_an_error_not_a_print(api, tmp_path):
    """Where the prototype printed and went on, there is an error now."""
    with pytest.raises(InvalidInput, match="0 to 29"):
        api.retrieve_top_k_memories(30)
    with pytest.raises(InvalidInput, match="at least one"):
        api.retrieve_memories_composite([], [])
    with pytest.raises(InvalidInput, match="0 to 119"):
        api.get_narrative_text(120)
    with pytest.raises(InvalidFile, match="check the path"):
        NarrativeMemoryAPI(data_path=tmp_path / "none.json")
    (tmp_path / "weights.pth").write_bytes(b"not a state dict")
    with pytest.raises(InvalidWeights, match="SparseMemoryText"):
        NarrativeMemoryAPI(tmp_path / "weights.pth")
