"""Damage to valid files, the same for the same seed: flipped bytes, cuts, lengths, numbers, texts, values."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 2**80, -0.5, 0.5, 1e-300, 1e308, float("nan"), float("inf")),
    *("", "\x1b[2J", "[red]x", "a\0b", "x" * 100_000, [], {}, [[]], {"": []}, [0] * 1000, "1", "nan"),
)
NUMBERS = (0, 1, 2**7, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TEXTS = (b"0", b"-1", b"nan", b"1e38", b"99999999999999999999", b"\x1b[2J", b"", b"\xff\xfe", b"2**9")


def mutant(content: bytes, seed: int) -> bytes:
    """The content with one to three faults; the values inside zips, JSON and safetensors' headers are met too."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_ways(content))(content, rng)
    return content


def _ways(content: bytes) -> list[Callable[[bytes, random.Random], bytes]]:
    ways = [_flip, _flip, _cut, _length, _length, _slice, _number, _text]
    if content[:2] == b"PK":
        ways += [_repacked] * 8
    if content[:2] == b"\x1f\x8b":
        ways += [_regzipped] * 16
    if _json(content) is not None:
        ways += [_value] * 16
    if _header(content) is not None:
        ways += [_safetensors] * 8
    return ways


def _place(content: bytes, rng: random.Random) -> int:
    """Anywhere; half of the time near the start, where headers are."""
    return rng.randrange(max(1, min(len(content), 1024) if rng.random() < 0.5 else len(content)))


def _put(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


def _flip(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 8))):
        content = _put(content, _place(content, rng), rng.randbytes(1))
    return content


def _cut(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return rng.choice((content[:start], content[start:], content + rng.randbytes(start % 4096)))


def _length(content: bytes, rng: random.Random) -> bytes:
    form = rng.choice(("<H", "<I", "<Q", ">H", ">I", "<f", "<d"))
    value: float = rng.choice(NUMBERS)
    if form[1] in "fd":
        value = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    else:
        value = int(value) % 2 ** (8 * struct.calcsize(form))
    return _put(content, _place(content, rng), struct.pack(form, value))


def _slice(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    part = content[start : start + rng.choice((1, 4, 64, 512))]
    return rng.choice(
        (
            content.replace(part, b"", 1),
            content[:start] + part + content[start:],
            _put(content, start, bytes(len(part))),
        )
    )


def _number(content: bytes, rng: random.Random) -> bytes:
    return _replaced(rb"-?[0-9]+(\.[0-9]+)?", content, rng)


def _text(content: bytes, rng: random.Random) -> bytes:
    return _replaced(rb"[A-Za-z_.]{3,}", content, rng)


def _replaced(pattern: bytes, content: bytes, rng: random.Random) -> bytes:
    found = list(re.finditer(pattern, content[: 2**16]))
    if not found:
        return _flip(content, rng)
    start, end = rng.choice(found).span()
    new = rng.choice(TEXTS)
    if rng.random() < 0.5:  # of the same length: what follows stays in its place
        new = new.ljust(end - start)[: end - start]
    return content[:start] + new + content[end:]


def _repacked(content: bytes, rng: random.Random) -> bytes:
    """A zip with one member damaged, and a checksum that fits it."""
    out = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(out, "w") as new,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # a name twice is one of the faults
            members = old.infolist()
            chosen = rng.choice(members)
            for member in members:
                data = old.read(member)
                fault = (
                    rng.choice(("data", "data", "data", "name", "twice", "gone")) if member is chosen else ""
                )
                if fault == "data":
                    data = mutant(data, rng.randrange(2**32))
                name = rng.choice(members).filename if fault == "name" else member.filename
                for _ in range({"twice": 2, "gone": 0}.get(fault, 1)):
                    new.writestr(name, data, member.compress_type)
    except Exception:
        return _flip(content, rng)
    return out.getvalue()


def _regzipped(content: bytes, rng: random.Random) -> bytes:
    try:
        return gzip.compress(mutant(gzip.decompress(content), rng.randrange(2**32)), mtime=0)
    except Exception:
        return _flip(content, rng)


def _json(content: bytes) -> Any:
    try:
        found = json.loads(content[: 2**20])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, (dict, list)) and found else None


def _value(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed(_json(content), rng)).encode()


def changed(data: Any, rng: random.Random) -> Any:
    """Plain data with one value, somewhere in it, replaced, left out or added."""
    if not isinstance(data, (dict, list)) or not data:
        return rng.choice(VALUES)
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    key = rng.choice(keys)
    fault = rng.choice(("deeper", "deeper", "deeper", "replaced", "gone", "added"))
    if fault == "gone":
        del data[key]
    elif fault == "added":
        if isinstance(data, dict):
            data[rng.choice(("more", "\x1b[2J", "n" * 10_000))] = rng.choice(VALUES)
        else:
            data += [rng.choice(VALUES)] * rng.choice((1, 1000))
    else:
        data[key] = changed(data[key], rng) if fault == "deeper" else rng.choice(VALUES)
    return data


def _header(content: bytes) -> bytes | None:
    """The JSON at the start of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    return header if 2 <= length <= len(content) - 8 and header[:1] == b"{" and _json(header) else None


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    old = _header(content)
    if old is None:
        return _flip(content, rng)
    new = _value(old, rng)
    return struct.pack("<Q", len(new)) + new + content[8 + len(old) :]
