"""Ask by what memories are about: lenses, filters over neurons, what is new, what repeats."""

import json

from memstore import MemoryStore, layout

narratives = json.loads(layout.NARRATIVES.read_text("utf-8"))[::3]
with MemoryStore.open(":memory:") as store:
    store.insert_many(narratives)

    # Five neurons that tell a category, graded on narratives that were kept apart.
    lens = store.lenses.learn("Routine", name="ordinary")
    print(f"{lens.name}: {lens.expression}, AUC {lens.grade:.2f}")
    print("most ordinary:", store.composite("ordinary", k=1)[0].text)

    # A lens is a category of whatever fits it; so is any expression.
    where = {"$holds": "ordinary", "category": {"$ne": "Routine"}}
    print("ordinary, yet filed elsewhere:", store.count(where))
    print("grief, not routine:", store.composite("+grief -routine", k=1)[0].text)

    # Before storing: what never fired here? After: what does it repeat?
    new = store.novelty("The compiler stops at a missing semicolon in line 40.")
    print("first time:", [fired.label for fired in new.first if fired.strong])
    again = store.insert(narratives[0]["text"].lower(), on_duplicate="link")
    print("repeats:", [both.other.id for both in store.copies(again)])

    # Ten hits about one thing, or five that say more between them.
    hits = store.search("my mother", k=50)
    print("diverse:", store.diverse(hits, k=5).ids, "nearest:", hits.ids[:5])

    # Govern by concept: look, then delete.
    doomed = {"$holds": "'crying and tears' > 0.1"}
    print("about to go:", store.count(doomed), "gone:", store.delete_where(doomed))
