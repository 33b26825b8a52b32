"""Collections as rows, so that two can be compared to the last byte."""

import json
from collections.abc import Iterator

import pytest
from anki.collection import Collection

KEYS = {"col": 1, "notes": 1, "cards": 1, "revlog": 1, "decks": 1, "deck_config": 1, "notetypes": 1,
        "fields": 2, "templates": 2, "tags": 1, "config": 1}

# A sync stamps what it sends.
USNS = {(table, "usn") for table in ("notes", "cards", "revlog", "decks", "deck_config", "notetypes", "templates")}

Rows = dict[str, dict[tuple, dict[str, object]]]


def rows(col: Collection) -> Rows:
    return {table: table_rows(col, table, key) for table, key in KEYS.items()}


def table_rows(col: Collection, table: str, key: int) -> dict[tuple, dict[str, object]]:
    columns = col.db.all(f"select name, type from pragma_table_info('{table}')")
    # The client's bridge hands blobs over as lists of numbers; as hex they are read and printed more easily.
    exprs = [f"hex({name})" if kind.lower() == "blob" else name for name, kind in columns]
    found = col.db.all(f"select {', '.join(exprs)} from {table}")
    names = [name for name, _ in columns]
    # Tags are unique without regard to case.
    return {tuple(str(part).casefold() if table == "tags" else part for part in row[:key]): dict(zip(names, row)) for row in found}


def differences(left: Rows, right: Rows, ignored: set[tuple[str, str]]) -> list[str]:
    """One line for each value that differs, with `ignored` (table, column) pairs left out."""
    out = []
    for table in left:
        for key in left[table].keys() | right[table].keys():
            ours, theirs = left[table].get(key), right[table].get(key)
            if ours is None or theirs is None:
                out.append(f"{table} {key}: {'missing' if ours is None else ours} / {'missing' if theirs is None else theirs}")
                continue
            out += [f"{table} {key} {name}: {ours[name]!r} / {theirs[name]!r}"
                    for name in ours if (table, name) not in ignored and not same(table, name, ours[name], theirs[name])]
    return sorted(out)


def assert_same(left: Rows, right: Rows, ignored: set[tuple[str, str]], which: str) -> None:
    __tracebackhide__ = True
    found = differences(left, right, ignored)
    if found:
        pytest.fail(f"{which}, {len(found)} differences:\n" + "\n".join(found[:40]), pytrace=False)


def same(table: str, column: str, left: object, right: object) -> bool:
    """Equal to the byte, but for the order of keys in JSON, which is random in the real client."""
    if left == right:
        return True
    if (table, column) == ("config", "val"):
        return json.loads(bytes.fromhex(left)) == json.loads(bytes.fromhex(right))
    if column in ("config", "common", "kind"):
        return list(fields(bytes.fromhex(left))) == list(fields(bytes.fromhex(right)))
    return False


OTHER = 255  # the field that keeps the JSON keys which the client did not know


def fields(blob: bytes) -> Iterator[tuple[int, object]]:
    """The fields of a protobuf message as they stand; nested messages stay bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = blob[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(blob):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        value, at = blob[at:at + size], at + size
        yield number, json.loads(value) if number == OTHER else value
