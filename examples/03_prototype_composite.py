"""The prototype's second usage example: neuron 15 high, neuron 5 low."""

from memstore import NarrativeMemoryAPI

api = NarrativeMemoryAPI()
indices, scores = api.retrieve_memories_composite(positive_neurons=[15], negative_neurons=[5], k=3)
print("Top narratives for +N15 / -N5:")
for idx, score in zip(indices, scores, strict=True):
    print(f"{idx.item():>4}  {score:.4f}  {api.get_narrative_text(idx.item())}")
