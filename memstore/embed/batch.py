"""Embedding many texts through a job: the embeddings endpoint, in batches or one by one."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from memstore.durable import appearing
from memstore.errors import EmbeddingFailed, JobError
from memstore.jobs.answers import Answer
from memstore.jobs.job import Job
from memstore.jobs.requests import Request
from memstore.jobs.standing import Judge
from memstore.types import Float32

KIND = "embeddings"
ENDPOINT = "/v1/embeddings"
VECTORS = "vectors.npy"
#: Texts a request. A line of output of 3,072 dimensions is then half a megabyte.
TEXTS = 32


def requests(texts: Iterable[str], model: str) -> Iterator[Request]:
    """Yield the requests that embed some texts, in order."""
    stream, start = iter(texts), 0
    while chunk := list(islice(stream, TEXTS)):
        body = {"model": model, "input": chunk, "encoding_format": "base64"}
        yield Request(f"texts-{start:09d}", body)
        start += len(chunk)


def judge_of(job: Job) -> Judge:
    """Return what judges a job's answers: so many vectors as texts, all of one length."""
    sizes = {request.id: request.inputs for request in job.requests()}
    lengths: list[int] = []

    def judged(answer: Answer) -> str | None:
        try:
            rows, length = vectors_of(answer.body or {}).shape
        except EmbeddingFailed as error:
            return str(error)
        lengths.append(length)
        if rows != sizes.get(answer.id, rows) or length != lengths[0]:
            return f"schema: {rows} vectors of {length} for {sizes.get(answer.id)} texts"
        return None

    return judged


def vectors_of(body: dict[str, Any]) -> Float32:
    """Return the (texts, d) vectors of an answer, whose entries come in any order."""
    try:
        entries = sorted(body["data"], key=lambda entry: entry["index"])
        rows = [decoded(entry["embedding"]) for entry in entries]
        if [entry["index"] for entry in entries] != list(range(len(rows))) or not rows:
            raise EmbeddingFailed("the answer lacks a vector")
        vectors = np.stack(rows)
        if vectors.ndim != 2 or not vectors.size:
            raise EmbeddingFailed("the answer holds empty vectors")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EmbeddingFailed(f"the answer holds no vectors ({type(error).__name__})") from error
    if not np.isfinite(vectors).all():
        raise EmbeddingFailed("a vector has NaN or infinity")
    return vectors


def decoded(embedding: Any) -> Float32:
    """Return one vector, sent as base64 of little-endian float32, or as numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    return np.asarray(embedding, dtype=np.float32)


def write_vectors(job: Job, out: Path | None = None) -> tuple[Path, tuple[int, int]]:
    """Write the vectors of a job's texts, (texts, d) float32, in order; returns where, and shape.

    Raises ``JobError`` for a job of another kind, ``EmbeddingFailed`` while answers are missing or
    where they differ in length.
    """
    if job.facts.kind != KIND:
        raise JobError(f"{job.folder} is a job of {job.facts.kind}, not of {KIND}")
    places: dict[str, tuple[int, int]] = {}
    total = 0
    for request in job.requests():
        places[request.id] = (total, request.inputs)
        total += request.inputs
    left = set(places)
    target = out or job.folder / VECTORS
    array: Any = None
    with appearing(target, over=True) as path:
        is_wrong = judge_of(job)
        for answer in job.answers():
            if answer.id not in left or answer.failure is not None or is_wrong(answer) is not None:
                continue
            vectors = vectors_of(answer.body or {})
            if array is None:
                shape = (total, vectors.shape[1])
                array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            start, count = places[answer.id]
            if vectors.shape != (count, array.shape[1]):
                raise EmbeddingFailed(
                    f"{answer.id} came back as {vectors.shape}, not {(count, array.shape[1])}: "
                    "ask all with one model"
                )
            array[start : start + count] = vectors
            left.discard(answer.id)
        if left:
            raise EmbeddingFailed(
                f"{len(left)} of {len(places)} requests have no answer, {min(left)} first: "
                "submit, watch and fetch, or ask them directly"
            )
        array.flush()
    return target, (total, int(array.shape[1]))
