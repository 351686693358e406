"""What a stranger may hand in: valid input bent in a few places, and input grown from grammars.

Every function draws from one ``random.Random``, so an input is known by its seed and number.
"""

from __future__ import annotations

import json
import re
import string
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

#: Where programs break: the edges of the machine's numbers, and of Python's.
NUMBERS = [0, 1, -1, 7, 255, 256, 65_535, 65_536, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63)]
NUMBERS += [2**64, 2**70, 10**400, 10**5000]
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e300, -1e300, float("inf"), float("-inf"), float("nan")]
TEXTS = ["", " ", "a", "grief", "\x00", "\ud800", "é", "\U0001f600", "x" * 1001, "$ne", "a.b", '"']
TEXTS += ["2026-05-01T09:30", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "90d", "%s"]
OTHERS = [b"a", None, True, False, Decimal(1), 1j, object(), {1, "a"}, frozenset(), range(3)]
OTHERS += [np.int64(3), np.float32(0.5), np.complex64(1), np.bool_(True), np.arange(3), np.array(2)]
OTHERS += [datetime(2026, 5, 1), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))]
OTHERS += [datetime.max.replace(tzinfo=UTC), timedelta(days=3), timedelta.max, np.datetime64("NaT")]
FIELDS = ["id", "key", "category", "text", "occurred_at", "created_at", "mood", "a.b", "metadata.x"]
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$contains"]

# --- bytes -------------------------------------------------------------------------------------


def flip(dice: Random, data: bytearray, *_: Any) -> None:
    at = dice.randrange(len(data))
    data[at] ^= 1 << dice.randrange(8)


def overwrite(dice: Random, data: bytearray, *_: Any) -> None:
    data[dice.randrange(len(data))] = dice.choice(b"\x00\x01\x7f\x80\xff\n\"'[{\\" + b"09-")


def remove(dice: Random, data: bytearray, *_: Any) -> None:
    at = dice.randrange(len(data))
    del data[at : at + dice.choice((1, 2, 5, 40))]


def insert(dice: Random, data: bytearray, *_: Any) -> None:
    at = dice.randint(0, len(data))
    data[at:at] = dice.randbytes(dice.choice((1, 1, 2, 4, 9)))


def repeat(dice: Random, data: bytearray, *_: Any) -> None:
    at = dice.randrange(len(data))
    piece = bytes(data[at : at + dice.choice((1, 3, 20))])
    data[at:at] = piece * dice.choice((1, 2, 5, 60))


def splice(dice: Random, data: bytearray, seeds: Sequence[bytes], *_: Any) -> None:
    other = dice.choice(seeds)
    data[dice.randrange(len(data)) :] = other[dice.randint(0, len(other)) :]


def put_word(dice: Random, data: bytearray, _: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = dice.randint(0, len(data))
    data[at : at + dice.choice((0, 0, 1, 4))] = dice.choice(words)


def put_number(dice: Random, data: bytearray, *_: Any) -> None:
    found = list(re.finditer(rb"\d+", data[:5000]))
    if found:
        chosen = dice.choice(found)
        data[chosen.start() : chosen.end()] = b"%d" % dice.choice(NUMBERS[:-2])


def cut(dice: Random, data: bytearray, *_: Any) -> None:
    del data[dice.randrange(len(data)) :]


CHANGES = (flip, overwrite, remove, insert, repeat, splice, put_word, put_word, put_number, cut)


def mutated(dice: Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return one of the seeds, changed in one to about eight places."""
    data = bytearray(dice.choice(seeds))
    for _ in range(1 + int(dice.expovariate(0.7))):
        if data:
            dice.choice(CHANGES)(dice, data, seeds, words)
    return bytes(data)


def flipped(dice: Random, data: bytes) -> bytes:
    """Return the data as long as it was, with up to fifty bits turned over."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 5, 50))):
        flip(dice, changed)
    return bytes(changed)


def mutated_text(dice: Random, seeds: Sequence[str], words: Sequence[str]) -> str:
    """Return a text changed as bytes; what is no UTF-8 then becomes lone surrogates."""
    changed = mutated(dice, [s.encode() for s in seeds], [w.encode() for w in words])
    return changed.decode("utf-8", dice.choice(("surrogateescape", "replace")))


def replace(file: Path, data: bytes) -> None:
    """Put a new file in place of another, which stays as it is wherever it is mapped."""
    file.unlink(missing_ok=True)  # writing over the old one would also wait for the disk
    file.write_bytes(data)


# --- Python values -----------------------------------------------------------------------------


def scalar(dice: Random) -> Any:
    """Return any value that holds no others."""
    kind = dice.randrange(6)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice(FLOATS)
    if kind == 2:
        return dice.choice(OTHERS)
    if kind == 3:
        return "".join(dice.choices(string.printable, k=dice.randrange(9)))
    return dice.choice(TEXTS)


def value(dice: Random, depth: int = 3) -> Any:
    """Return any value: mostly scalars, some lists and dicts, now and then a very deep one."""
    kind = dice.randrange(12)
    if depth and kind == 0:
        return [value(dice, depth - 1) for _ in range(dice.randrange(5))]
    if depth and kind == 1:
        return {scalar_key(dice): value(dice, depth - 1) for _ in range(dice.randrange(4))}
    if depth and kind == 2 and dice.random() < 0.05:
        return deep(dice.choice((40, 600, 3000)), dice.choice(({}, [], 1)), dice.random() < 0.5)
    return scalar(dice)


def scalar_key(dice: Random) -> Any:
    return dice.choice(TEXTS) if dice.random() < 0.8 else dice.choice((1, None, True, 10**5000))


def deep(levels: int, innermost: Any, lists: bool) -> Any:
    """Return lists or dicts nested so many levels deep."""
    for _ in range(levels):
        innermost = [innermost] if lists else {"a": innermost}
    return innermost


# --- grammars ----------------------------------------------------------------------------------


def number_text(dice: Random) -> str:
    return dice.choice(("1", "0.5", "1e9", "2e9", ".5", "3.", "1e-300", "1e999", "٣", "00", "-1"))


def neuron_text(dice: Random) -> str:
    return dice.choice(
        ("1", "9", "N3", "10", "999999999", "9" * 30, "'grief'", "grief", '"a\\"b"', "''", "N", "é")
    )


def clause(dice: Random) -> str:
    kind = dice.randrange(5)
    if kind == 0:
        return "!" + neuron_text(dice)
    if kind == 1:
        bound = dice.choice((">", ">=", "<", "<=", "=", "=="))
        return neuron_text(dice) + bound + number_text(dice)
    terms = []
    for _ in range(dice.choice((1, 1, 2, 4, 30))):
        weight = number_text(dice) + dice.choice("**\u00d7") if dice.random() < 0.5 else ""
        terms.append(dice.choice("++-\u2212\u2013") + weight + neuron_text(dice))
    return " ".join(terms)


def expression(dice: Random) -> str:
    """Return text that is nearly always an expression, of up to eight clauses."""
    return dice.choice(("&", " & ", "&&"))[: dice.choice((1, 3))].join(
        clause(dice) for _ in range(dice.choice((1, 1, 2, 3, 8)))
    )


def weights_of_neurons(dice: Random) -> Any:
    """Return what may stand for an expression: a mapping, a number, or anything."""
    if dice.random() < 0.2:
        return value(dice)
    neurons = (0, 3, 9, 10, "grief", np.int64(4), -1)
    return {
        dice.choice(neurons) if dice.random() < 0.9 else scalar_key(dice): (
            dice.uniform(-2, 2) if dice.random() < 0.8 else scalar(dice)
        )
        for _ in range(dice.randrange(5))
    }


def operand(dice: Random, operator: str) -> Any:
    if dice.random() < 0.15:
        return value(dice)
    if operator in ("$in", "$nin"):
        return [scalar(dice) if dice.random() < 0.2 else dice.choice("abc") for _ in range(4)]
    if operator == "$exists":
        return dice.random() < 0.5
    return dice.choice((1, 2.5, "a", "grief", "2026-05-01", True, None, 7))


def condition(dice: Random, depth: int) -> Any:
    if dice.random() < 0.3:
        return value(dice)
    asked = {}
    for _ in range(dice.choice((1, 1, 2))):
        if depth and dice.random() < 0.15:
            asked["$not"] = condition(dice, depth - 1)
        else:
            name = dice.choice(OPERATORS)
            asked[name] = operand(dice, name)
    return asked


def where(dice: Random, depth: int = 4) -> Any:
    """Return what is nearly a filter: right in most places, anything at all in some."""
    if dice.random() < 0.03:
        return value(dice)
    asked: dict[Any, Any] = {}
    for _ in range(dice.choice((1, 1, 2, 3))):
        if depth and dice.random() < 0.3:
            asked[dice.choice(("$and", "$or", "$nor", "$xor"))] = [
                where(dice, depth - 1) for _ in range(dice.choice((1, 2, 3)))
            ]
        elif depth and dice.random() < 0.1:
            asked["$not"] = where(dice, depth - 1)
        elif dice.random() < 0.1:
            held = ("9", "9 - 3", "!3", "3>0.1", "-9", 7, {3: 1.0}, "nobody", "3 +", "", None)
            asked["$holds"] = dice.choice(held) if dice.random() < 0.9 else value(dice)
        else:
            name = dice.choice(FIELDS) if dice.random() < 0.9 else scalar_key(dice)
            asked[name] = condition(dice, depth)
    return asked


def row(dice: Random) -> Any:
    """Return what is nearly a row to store."""
    if dice.random() < 0.05:
        return value(dice)
    made: dict[Any, Any] = {"text": dice.choice(("a quarrel", "x " * 50))}
    for name in ("text", "category", "key", "occurred_at"):
        if dice.random() < 0.3:
            made[name] = scalar(dice) if dice.random() < 0.7 else value(dice)
    if dice.random() < 0.6:
        names = [dice.choice(TEXTS) for _ in range(3)]
        made["metadata"] = {name: value(dice) for name in names}
    if dice.random() < 0.05:
        made[scalar_key(dice)] = 1
    return made


# --- index files -------------------------------------------------------------------------------


def resealed(dice: Random, file: bytes, words: Sequence[bytes]) -> bytes:
    """Return an index file with a changed header under a right checksum."""
    length = struct.unpack_from("<I", file, 8)[0]
    header = mutated(dice, [file[16 : 16 + length]], words)
    if len(header) < length and dice.random() < 0.9:
        header = header.ljust(length)  # blanks, so that the body stays where it was
    return sealed(file, header)


def sealed(file: bytes, header: bytes) -> bytes:
    """Return an index file with this header, under a right checksum."""
    length = struct.unpack_from("<I", file, 8)[0]
    start = -(-(16 + length) // 64) * 64
    head = file[:8] + struct.pack("<II", len(header), zlib.crc32(header)) + header
    return head.ljust(-(-len(head) // 64) * 64, b"\0") + file[start:]


def relabelled(dice: Random, file: bytes, words: Sequence[bytes]) -> bytes:
    """Return a safetensors file with a changed header of the length that it says."""
    length = struct.unpack_from("<Q", file)[0]
    header = mutated(dice, [file[8 : 8 + length]], words).ljust(length)
    return struct.pack("<Q", len(header)) + header + file[8 + length :]


def forged(dice: Random, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Change fields and arrays of an index file that is then sealed like any other."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        if fields and dice.random() < 0.3:
            fields[dice.choice(list(fields))] = jsonable(dice)
        elif arrays:
            name = dice.choice(list(arrays))
            changed = bent(dice, arrays[name], list(arrays.values()))
            arrays.pop(name)  # and to the end of the file, where reading on leaves the map
            if changed is not None:
                arrays[name] = changed


def jsonable(dice: Random) -> Any:
    """Return a value that a JSON header can hold."""
    drawn = dice.choice((*NUMBERS[:-2], 0.5, -1.0, "a", None, True, [], {}, [1], 1e300, 40, 300))
    json.dumps(drawn)
    return drawn


def bent(dice: Random, array: Any, others: Sequence[Any]) -> Any:
    """Return an array changed in type, shape or content; None for none at all."""
    kind = dice.randrange(8)
    if kind == 0:
        return None
    if kind == 1:
        return array[: dice.randint(0, len(array))]
    if kind == 2:
        return np.concatenate([array, array[: dice.randint(0, 9)]])
    if kind == 3:
        return dice.choice(others)
    if kind == 4:
        with np.errstate(all="ignore"):
            return array.astype(dice.choice(("u1", "<u2", "<u4", "<i8", "<f4", "<f8", "?")))
    if kind == 5:
        return array.reshape(dice.choice(((-1,), (1, -1), (-1, 1))))
    changed = array.copy()
    raw = changed.reshape(-1).view(np.uint8)
    for _ in range(dice.choice((1, 1, 4, 50))):
        if len(raw):
            raw[dice.randrange(len(raw))] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
    return changed
