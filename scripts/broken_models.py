"""Broken models for `fuzz.py`: JSON, TOML and safetensors that are wrong in themselves or in what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from broken_images import Draw, any_way

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0,
    -0.0, 0.5, 1.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), "", "0", "1", "nan", "default",
    "x" * 5000, "two\nlines", "\x1b[31m", "\ud800", "٣", "é\u202e", [], [0], [1, 2], [-1], [[]], [None],
    [2**40, 2**40], {}, {"a": 1}, {"": None},
)  # fmt: skip
ODD_TEXT = (
    "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "1e999", "-", "NaN", '"\\ud800"', '"\\u0000"', "{", "", "\x00",
    "1" + "0" * 400, "null",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def break_values(value: Any, draw: Draw) -> Any:
    """A copy of nested plain values with one replaced, dropped, renamed, repeated or added."""
    value = json.loads(json.dumps(value))
    found = places(value)
    odd = ODD[int(draw.integers(len(ODD)))]
    if not found or draw.random() < 0.02:
        return odd
    path = found[int(draw.integers(len(found)))]
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    last = path[-1]
    match int(draw.integers(8)):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[str(ODD[int(draw.integers(len(ODD)))])[:50]] = holder.pop(last)
        case 2 if isinstance(holder, dict):
            holder[["spare", "", "a[b", "[", "a.b", "two\nlines", "é", "x" * 300][int(draw.integers(8))]] = odd
        case 3 if isinstance(holder[last], int):
            holder[last] = holder[last] * int(draw.choice([-1, 2, 3, 1000])) + int(draw.integers(-1, 2))
        case 4 if isinstance(holder[last], list):
            holder[last] = holder[last] * int(draw.choice([0, 2, 5, 1000]))
        case _:
            holder[last] = odd
    return value


def break_text(text: str, draw: Draw) -> bytes:
    """JSON or TOML that is wrong as text: encodings, byte order marks, repeated keys, deep nesting, long numbers."""
    lines = text.splitlines()
    n = int(draw.integers(len(lines)))
    odd = ODD_TEXT[int(draw.integers(len(ODD_TEXT)))]
    match int(draw.integers(8)):
        case 0:
            return b"\xef\xbb\xbf" + text.encode()
        case 1:
            return text.encode("utf-16" if draw.random() < 0.5 else "utf-32")
        case 2:
            lines.insert(n, lines[n])
        case 3:  # the value of a line
            mark = ":" if ":" in lines[n] else "="
            name, _, rest = lines[n].partition(mark)
            lines[n] = f"{name}{mark} {odd}{',' if rest.endswith(',') else ''}"
        case 4:
            del lines[n]
        case 5:
            return odd.encode()
        case _:
            return any_way(text.encode(), draw)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def break_json(content: bytes, draw: Draw) -> bytes:
    """A JSON file with another value somewhere, or that is none any more."""
    if draw.random() < 0.3:
        return break_text(content.decode(), draw)
    value = json.loads(content)
    for _ in range(int(draw.choice([1, 1, 2, 4]))):
        value = break_values(value, draw)
    return json.dumps(value, indent=1, ensure_ascii=bool(draw.random() < 0.5)).encode("utf-8", "surrogatepass")


ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
        "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8, "F4": 1}  # fmt: skip


def break_safetensors(content: bytes, draw: Draw) -> bytes:
    """A safetensors file whose header, tensors or metadata are others, often laid out as they should be."""
    kind = int(draw.integers(10))
    if kind < 2:
        return any_way(content, draw)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if kind == 2:
        size = int(draw.choice([0, 1, length - 1, length + 1, 2**31, 2**63 - 1])) if draw.random() < 0.8 else 2**64 - 1
        return size.to_bytes(8, "little") + content[8:]
    if kind == 3:
        text = break_text(json.dumps(header, indent=1), draw)
        return len(text).to_bytes(8, "little") + text + data
    if kind == 4:
        others = (b"", b"\x80\x04\x95", b"PK\x03\x04" + bytes(100), b"{}", bytes(8), b"\x02" + bytes(7) + b"{}")
        return others[int(draw.integers(len(others)))]
    if kind == 5:  # sound but for the numbers
        values = np.frombuffer(data, np.float32).copy()
        odd = np.float32([np.nan, np.inf, -np.inf, 3e38, 1e-40, 0, -1][int(draw.integers(7))])
        values[draw.random(values.size) < draw.choice([1.0, 0.5, 0.001])] = odd
        return content[: 8 + length] + values.tobytes()
    names = [name for name in header if name != "__metadata__"]
    name = names[int(draw.integers(len(names)))]
    if kind == 6:
        text = break_json(json.dumps(header).encode(), draw)
        return len(text).to_bytes(8, "little") + text + data
    if kind == 7:
        metadata = {"step": ["", "-1", "1.5", "x", "9" * 5000, "٣", "1e9", " 7 "][int(draw.integers(8))]}
        header["__metadata__"] = [metadata, metadata | {"config": "?"}, {}, None][int(draw.integers(4))]
    elif draw.random() < 0.5:
        header[name]["dtype"] = list(ITEM)[int(draw.integers(len(ITEM)))]
    elif draw.random() < 0.7:
        shape: list[int] = header[name]["shape"]
        shapes: tuple[list[int], ...] = ([], [0], [1], [1, 1], [0, 2**40], shape[::-1], [*shape, 1])
        header[name]["shape"] = shapes[int(draw.integers(len(shapes)))]
    else:
        header[["", "x" * 5000, "two\nlines", "é", f"{name}.", "../x"][int(draw.integers(6))]] = header.pop(name)
    return laid_out({key: value for key, value in header.items() if value is not None}, data)


def laid_out(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file with the dtypes and shapes of `header`, one tensor after the other, filled from `data`."""
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            size = ITEM[entry["dtype"]] * int(np.prod(entry["shape"], dtype=object))
            entry["data_offsets"] = [end, end + size]
            end += size
    text = json.dumps(header).encode()
    filled = (data * (end // max(1, len(data)) + 1))[:end]
    return len(text).to_bytes(8, "little") + text + filled


def broken(run: Path, target: Path, draw: Draw) -> None:
    """A copy of a run's model folder, or of the run, with one of its files broken."""
    kind = int(draw.integers(20))
    if kind < 15:
        shutil.copytree(run / "model", target)
        path = target / ("model.safetensors" if kind < 8 else "config.json")
        way = break_safetensors if kind < 8 else break_json
        path.write_bytes(way(path.read_bytes(), draw))
        return
    shutil.copytree(run, target)
    checkpoint = sorted((target / "checkpoints").iterdir())[-1]
    if kind == 15:
        path = target / "config.toml"
        path.write_bytes(break_text(path.read_text(encoding="utf-8"), draw))
        return
    if kind == 16:
        path = checkpoint / "manifest.json"
        path.write_bytes(break_json(path.read_bytes(), draw))
        return
    name = ("state.json", "model.safetensors", "optimizer.safetensors")[kind - 17]
    path = checkpoint / name
    way = break_json if kind == 17 else break_safetensors
    path.write_bytes(way(path.read_bytes(), draw))
    if draw.random() < 0.7:  # as if it had been written so
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        content = path.read_bytes()
        manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
