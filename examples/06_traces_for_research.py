"""Traces as a matrix: see which neurons tell the categories of the samples apart."""

import json

from memstore import MemoryStore, layout

narratives = json.loads(layout.NARRATIVES.read_text("utf-8"))[:60]
with MemoryStore.open(":memory:") as store:
    store.insert_many(narratives)
    activations = store.traces().to_dense()
    print("matrix:", activations.shape, "of which non-zero:", (activations > 0).sum())
    busiest = (activations > 0).sum(axis=0).argsort()[::-1][:3]
    for number in busiest.tolist():
        neuron = store.neurons[number]
        best = next(iter(neuron.categories.items()))
        print(f"neuron {number}: fires for {neuron.fires}, AUC {best[1]:.2f} for {best[0]}")
