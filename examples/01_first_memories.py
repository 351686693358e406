"""Store a few memories, look at their traces, ask by meaning and by neuron."""

from memstore import MemoryStore, N

with MemoryStore.open(":memory:") as store:
    store.insert("Grandfather let me hold the reins on the way to the mill.", category="Childhood")
    store.insert("My first day at the bakery: I burned forty rolls.", category="Work")
    store.insert("Snow up to the windowsill; we climbed out by the attic.", category="Childhood")

    first = store.search("beginning a new job", k=1)[0]
    print(first.text)
    print(first.why())

    strongest = list(store.trace(first.id).to_dict().items())[:3]
    print("its strongest neurons:", strongest)

    neuron = strongest[0][0]
    store.neurons.label(neuron, "new beginnings")
    for hit in store.composite(N["new beginnings"] - 0.2 * N[5], k=2):
        print(f"{hit.score:.3f}  {hit.text}")
