"""The prototype's first usage example: the top narratives of neuron 10."""

from memstore import NarrativeMemoryAPI

api = NarrativeMemoryAPI()
indices, activations = api.retrieve_top_k_memories(neuron_index=10, k=5)
print("Top narratives for neuron 10:")
for idx, act in zip(indices, activations, strict=True):
    print(f"{idx.item():>4}  {act:.4f}  {api.get_narrative_text(idx.item())}")
