"""Filters over metadata and times, and a half-life that lets old memories fade."""

from datetime import UTC, datetime, timedelta

from memstore import MemoryStore

now = datetime.now(UTC)
days = [
    ("Ran along the river before work.", 4, 0),
    ("Ran along the river, slowly, with a cold.", 2, 40),
    ("Ran my first ten kilometres, by the river.", 5, 400),
]
with MemoryStore.open(":memory:") as store:
    store.insert_many(
        {"text": text, "metadata": {"mood": mood}, "occurred_at": now - timedelta(days=age)}
        for text, mood, age in days
    )
    print("All:", [hit.text for hit in store.search("running by the river")])
    good = store.search("running by the river", where={"mood": {"$gte": 4}})
    print("In a good mood:", [hit.text for hit in good])
    recent = store.search("running by the river", half_life="30d")
    print("Fading by half in 30 days:")
    for hit in recent:
        print(hit.why())
