"""Digests of a record, so that damage which leaves a file readable is noticed too.

The checksum of a JSON document is its first entry, `seal`: the SHA-256 of all other bytes. A summary has one, and its `files`
hold the SHA-256 of every file that it stands for; measurements and provenance have their own. Documents of schema 1, the
first, have none: they are read, and `store check` says that nothing vouches for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.lab.declare.own_code import kind_of_data

SCHEMA = 2
"""layout of a record; 1, where a document names none, had no checksums and in `files` digests of tensors"""
_HEAD = b'{\n "seal": "'
_TAIL = b'",\n'
_BODY = len(_HEAD) + 64 + len(_TAIL)
LIGHT = "without_weights"
"""in the summary of a run that was exported without its final weights"""
PUBLISHED = "published"
"""in what was made of published records: the study and scale they were published as; nothing of it was computed in this store"""
BITS = "correct.safetensors"
"""of a published record, in place of predictions: a bit per test example, 1 where the run was right"""
CHUNK = 1 << 20
"""bytes read at once"""


def with_checksum(content: bytes) -> bytes:
    """The JSON object `content`, which begins with a line `{`, with its checksum as the first entry."""
    assert content.startswith(b"{\n ")
    return _HEAD + hashlib.sha256(content).hexdigest().encode() + _TAIL + content[2:]


def checksum_holds(content: bytes) -> bool:
    """Whether `content` has a checksum and is as it was written."""
    return content[:_BODY] == _HEAD + hashlib.sha256(b"{\n" + content[_BODY:]).hexdigest().encode() + _TAIL


def newer(content: bytes, document: Mapping[str, Any]) -> bool:
    """Whether `content`, which reads as `document`, is whole, but of a schema that is not known here."""
    schema = document.get("schema")
    return type(schema) is int and schema > SCHEMA and checksum_holds(content)


def why_broken(content: bytes, document: Mapping[str, Any]) -> str | None:
    """What is wrong with `content`, which reads as `document`; None where its checksum holds, or its schema has none."""
    schema = document.get("schema", 1)
    if type(schema) is not int or schema < 1:
        return "its schema is no number"
    if schema == 1 and "seal" not in document:
        return None
    if not checksum_holds(content):
        return "it is not what was written"
    return "a newer batchlab wrote it" if newer(content, document) else None


def sha256_of(path: Path) -> str | None:
    """Digest of a file's bytes; None where no file is there. Holds `CHUNK` bytes at a time."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                sha.update(chunk)
    except (FileNotFoundError, IsADirectoryError):
        return None
    return sha.hexdigest()


def config_id(document: Mapping[str, Any]) -> str:
    """The run id that a stored configuration stands for, whichever version of batchlab wrote it; see `RunConfig.run_id`."""
    own = document.get("data_sha256") is not None
    fields = {**document, **({"dataset": kind_of_data(str(document.get("dataset")))} if own else {})}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:20]
