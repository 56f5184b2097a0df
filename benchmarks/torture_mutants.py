"""Files made wrong: at random anywhere, and where their format is at its weakest. Bytes in, bytes out, by seed."""

import contextlib
import gzip
import hashlib
import io
import json
import pickletools
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeAlias

import msgspec

Mutator: TypeAlias = Callable[[Random, bytes], bytes]

NUMBERS = (
    0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
HOSTILE = (
    "0", "1", "-1", "0.5", "-0.0", "1e5", "100000000000", "1000000000000000000", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "1" + "0" * 30, "1" * 5000, "1e308", "1e999", "-1e999", "NaN",
    "Infinity", "true", "false", "null", '""', '"x"', '"' + "x" * 5000 + '"', '"\\ud800"', '"\\u0000"', '"../../x"',
    '"os:system"', '"torture_trap:spring"', '"__class__"', '"nan"', "[]", "[[]]", "[null]", "[1, 2, 3]", "[-1]",
    "[100000000000, 100000000000]", "[true]", '["x"]', "{}", '{"": null}', '{"a": {"b": {"c": 1}}}',
    "[" * 600 + "]" * 600, "[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000,
    "[" + "0," * 20_000 + "0]",
)  # fmt: skip
"""Values in JSON, or what others take for it."""
SHA256 = "sha256"
"""The key under which documents carry their checksum; it comes last."""
TOML = (
    "0", "1", "-1", "0.5", "1e400", "-1e400", "nan", "inf", "9223372036854775807", "1" + "0" * 23, "true", '""', '"x"',
    '"../../x"', '"os:system"', '"torture_trap:spring"', '"\\u0000"', "[]", "[[]]", "[1, 2]", "[-1]", '["x"]', "{}",
    "{ a = 1 }", "2020-01-01", "12:30:00", "[" * 600 + "]" * 600, "{ a = " * 600 + "1" + " }" * 600, "0x7fffffff",
)  # fmt: skip


# -- anywhere --------------------------------------------------------------------------------------------------------


def flip_bits(draw: Random, content: bytes) -> bytes:
    """One to four bits turned."""
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4)) if out else 0):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def run_of_bytes(draw: Random, content: bytes) -> bytes:
    """A run of bytes that are all alike, or drawn."""
    start, length = draw.randrange(len(content) + 1), draw.choice((1, 2, 8, 64, 512))
    filling = draw.choice((b"\0" * length, b"\xff" * length, draw.randbytes(length)))
    return content[:start] + filling + content[start + length :]


def truncate(draw: Random, content: bytes) -> bytes:
    """The end missing; often nearly all, or nearly nothing."""
    place = draw.choice((draw.randrange(len(content) + 1), draw.randrange(min(32, len(content) + 1)), -1))
    return content[:place]


def insert(draw: Random, content: bytes) -> bytes:
    """Something in between, or behind."""
    place = draw.choice((draw.randrange(len(content) + 1), len(content)))
    return content[:place] + draw.randbytes(draw.choice((1, 4, 8, 100))) + content[place:]


def leave_out(draw: Random, content: bytes) -> bytes:
    """A piece missing in the middle."""
    place = draw.randrange(len(content) + 1)
    return content[:place] + content[place + draw.choice((1, 4, 8, 100)) :]


def duplicate(draw: Random, content: bytes) -> bytes:
    """A piece twice, or the whole."""
    start = draw.randrange(len(content) + 1)
    piece = content[start : start + draw.choice((1, 8, 64, len(content)))]
    return draw.choice((content[:start] + piece + content[start:], content + content))


def number_of_bytes(draw: Random, content: bytes) -> bytes:
    """A number of 1 to 8 bytes, in either order, replaced by one at an edge of its range; often near the beginning."""
    width = draw.choice((1, 2, 4, 8))
    place = draw.randrange(max(1, draw.choice((min(len(content), 64), len(content))) - width + 1))
    value = (draw.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, draw.choice(("little", "big")))
    return content[:place] + value + content[place + width :]


def number_of_digits(draw: Random, content: bytes) -> bytes:
    """A number written in digits, replaced."""
    found = list(re.finditer(rb"\d+", content[:200_000]))
    if not found:
        return flip_bits(draw, content)
    at = draw.choice(found)
    return content[: at.start()] + str(draw.choice(NUMBERS)).encode() + content[at.end() :]


def swap_pieces(draw: Random, content: bytes) -> bytes:
    """Two pieces exchanged."""
    length = draw.choice((1, 4, 16, 64))
    if len(content) < 2 * length:
        return flip_bits(draw, content)
    a, b = sorted((draw.randrange(len(content) - length), draw.randrange(len(content) - length)))
    b = max(b, a + length)
    piece, other = content[a : a + length], content[b : b + length]
    return content[:a] + other + content[a + length : b] + piece + content[b + length :]


ANYWHERE: tuple[Mutator, ...] = (
    flip_bits, flip_bits, run_of_bytes, truncate, insert, leave_out, duplicate, number_of_bytes, number_of_digits,
    swap_pieces,
)  # fmt: skip


def splice(draw: Random, content: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    a = draw.randrange(len(content) + 1)
    b = draw.choice((a, draw.randrange(len(other) + 1)))
    return content[:a] + other[b:]


# -- JSON ------------------------------------------------------------------------------------------------------------


class Pairs(list[tuple[str, Any]]):
    """An object of JSON: its keys may stand twice."""


class Raw(str):
    """Text that stands in JSON as it is."""

    __slots__ = ()


def parse(text: str) -> Any:
    """JSON whose objects are :class:`Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """The text of what :func:`parse` gave, with what was put in."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{dump(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> Iterator[tuple[Any, int]]:
    """Every place in a tree: what holds it, and its index there."""
    if not isinstance(value, list):
        return
    for index, item in enumerate(value):
        yield value, index
        yield from _places(item[1] if isinstance(value, Pairs) else item)


def change_tree(draw: Random, tree: Any) -> Any:
    """A tree with one place made wrong, in place."""
    places = list(_places(tree))
    if not places:
        return Raw(draw.choice(HOSTILE))
    holder, index = draw.choice(places)
    keyed = isinstance(holder, Pairs)
    what = draw.choice(("value",) * 6 + ("remove", "rename", "twice", "other", "number"))
    if what == "remove":
        del holder[index]
    elif what == "rename" and keyed:
        holder[index] = (draw.choice(("", "x", "format", "__class__", holder[index][0] + "_")), holder[index][1])
    elif what == "twice":
        again = (holder[index][0], Raw(draw.choice(HOSTILE))) if keyed else holder[index]
        holder.insert(draw.choice((index, index + 1)), again)
    else:
        other_holder, other = draw.choice(places)
        taken = other_holder[other][1] if isinstance(other_holder, Pairs) else other_holder[other]
        # As text: a tree must not hold itself.
        new = Raw(dump(taken)) if what == "other" else Raw(draw.choice(HOSTILE if what == "value" else NUMBERS))
        holder[index] = (holder[index][0], new) if keyed else new
    return tree


def json_value(draw: Random, content: bytes) -> bytes:
    """A document, or one of several lines that are documents, with one place made wrong."""
    lines = content.decode(errors="surrogateescape").split("\n") if content.count(b"\n{") else [content.decode()]
    full = [number for number, line in enumerate(lines) if line.strip()]
    try:
        at = draw.choice(full)
        lines[at] = dump(change_tree(draw, parse(lines[at])))
    except (IndexError, ValueError):
        return flip_bits(draw, content)
    return "\n".join(lines).encode(errors="replace")


def sealed_json(draw: Random, content: bytes) -> bytes:
    """A document of ours, or one of several lines, with one place made wrong and a checksum that fits it."""
    lines = content.decode().split("\n") if content.count(b"\n{") else [content.decode()]
    at = draw.choice([number for number, line in enumerate(lines) if line.strip()])
    tree = Pairs((key, item) for key, item in parse(lines[at]) if key != SHA256)
    if len(tree) == len(parse(lines[at])):
        raise ValueError("it carries no checksum")
    text = dump(change_tree(draw, tree))
    with contextlib.suppress(ValueError, RecursionError):
        text = msgspec.json.format(text, indent=-1)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    lines[at] = f'{text[:-1]},"{SHA256}":"{digest}"}}'
    return "\n".join(lines).encode(errors="replace")


# -- safetensors -----------------------------------------------------------------------------------------------------


def split_header(content: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file as a tree, and what follows."""
    length = int.from_bytes(content[:8], "little")
    return parse(content[8 : 8 + length].decode()), content[8 + length :]


def with_header(header: str, rest: bytes) -> bytes:
    """The file with this header."""
    text = header.encode(errors="replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def outer_header(draw: Random, content: bytes) -> bytes:
    """A safetensors file whose list of tensors is wrong."""
    header, rest = split_header(content)
    return with_header(dump(change_tree(draw, header)), rest)


def inner_header(draw: Random, content: bytes) -> bytes:
    """A safetensors file whose own header, JSON in its metadata, is wrong."""
    header, rest = split_header(content)
    metadata = dict(header).get("__metadata__") or Pairs()
    inner = [n for n, (_, value) in enumerate(metadata) if isinstance(value, str) and value[:1] in ("{", "[")]
    if not inner:
        return outer_header(draw, content)
    at = draw.choice(inner)
    name, text = metadata[at]
    metadata[at] = (name, dump(change_tree(draw, parse(text))))
    return with_header(dump(header), rest)


def _resealed(content: bytes, change: Callable[[Any], str]) -> bytes:
    """A file of ours with another header, and a seal that fits it."""
    from nervure.core.container import MARK, SEAL, _seal

    header, rest = split_header(content)
    metadata = dict(dict(header)["__metadata__"])
    text, tensors = change(parse(metadata[MARK])), metadata[SEAL].partition(" ")[2]
    new = {MARK: text, SEAL: _seal(text, tensors)}
    table = Pairs((name, Pairs(new.items()) if name == "__metadata__" else entry) for name, entry in header)
    return with_header(dump(table), rest)


def sealed_header(draw: Random, content: bytes) -> bytes:
    """A file of ours whose own header is wrong, with a seal that says it is right."""
    return _resealed(content, lambda tree: dump(change_tree(draw, tree)))


FACTORIES = ("os:system", "torture_trap:spring", "builtins:exec", "subprocess:run", "this:d", "os:abort")


def sealed_source(draw: Random, content: bytes) -> bytes:
    """A file of ours that names code to build its network with, well sealed."""
    factory = draw.choice(FACTORIES)
    options = draw.choice(({}, {"command": "true"}, {"args": ["true"]}))
    source = json.dumps({"name": "", "factory": factory, "options": options})
    new = Raw('{"model": ' + source + "}")
    return _resealed(content, lambda tree: dump(Pairs((k, new if k == "meta" else v) for k, v in tree)))


RESEALING = frozenset({"sealed_header", "sealed_source", "sealed_json"})
"""Mutators that leave a file well sealed: what it holds then may be another value."""


def metadata_words(draw: Random, content: bytes) -> bytes:
    """A safetensors file whose metadata have other keys, or other words as values."""
    header, rest = split_header(content)
    metadata = dict(header).get("__metadata__")
    if not metadata:
        return outer_header(draw, content)
    at = draw.randrange(len(metadata))
    name, text = metadata[at]
    metadata[at] = draw.choice(
        ((name[:-1] + "_", text), (name.upper(), text), (name, ""), (name, text[:-1]), ("", text))
    )
    return with_header(dump(header), rest)


# -- others ----------------------------------------------------------------------------------------------------------


def toml_value(draw: Random, content: bytes) -> bytes:
    """A key of TOML with another value, another name, twice, or gone; or a section of another name."""
    lines = content.decode().splitlines()
    at = draw.choice([number for number, line in enumerate(lines) if line.strip()])
    key, equals, _ = lines[at].partition("=")
    what = draw.choice(("value",) * 5 + ("gone", "twice", "name"))
    if what == "value" and equals:
        lines[at] = f"{key}= {draw.choice(TOML)}"
    elif what == "gone":
        del lines[at]
    elif what == "twice":
        lines.insert(at, lines[at])
    else:
        lines[at] = lines[at].replace(draw.choice(lines[at]), draw.choice("xX.[]=\"' "), 1)
    return "\n".join(lines).encode()


def inside_gzip(draw: Random, content: bytes) -> bytes:
    """A gzipped file that unpacks to a wrong one; now and then to far too much."""
    inside = gzip.decompress(content)
    if draw.random() < 0.03:
        return gzip.compress(inside, 1) + BOMB * draw.choice((1, 20, 60))
    return gzip.compress(draw.choice(ANYWHERE)(draw, inside), 1)


BOMB = gzip.compress(bytes(8 << 20), 9)
"""8 MiB of nothing; gzipped files may follow one another in one."""
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
SNIPPETS = (
    b"cos\nsystem\nX\x04\x00\x00\x00trueR",
    b"cbuiltins\neval\nX\x01\x00\x00\x001R",
    b"cnumpy\nndarray\n(I100000000000\nttR",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntX\x01\x00\x00\x00btR",
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I0\nI1\ntR",
    b"r\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"\x8e" + (1 << 40).to_bytes(8, "little"),
    b"\x8d" + (1 << 62).to_bytes(8, "little"),
    b"\x96" + (1 << 33).to_bytes(8, "little"),
    b"\x95" + (1 << 60).to_bytes(8, "little"),
    b"\x8b\xff\xff\xff\x7f",
    b"(" * 100_000,
    b"]" + b"(]" * 20_000 + b"e" * 20_000,
    b"\x82\x01",
    b"L" + b"9" * 50_000 + b"L\n",
)
"""Pieces of pickles that run, take or nest too much."""


def pickle_opcode(draw: Random, content: bytes) -> bytes:
    """A pickle with an opcode exchanged, doubled, left out, or with a piece put in before it."""
    try:
        places = [place for _, _, place in pickletools.genops(io.BytesIO(content)) if place is not None]
    except Exception:
        return flip_bits(draw, content)
    number = draw.randrange(len(places))
    at, end = places[number], [*places, len(content)][number + 1]
    what = draw.choice(("other", "twice", "gone", "snippet", "snippet"))
    if what == "other":
        return content[:at] + draw.choice(OPCODES) + content[at + 1 :]
    if what == "twice":
        return content[:end] + content[at:end] + content[end:]
    return content[:at] + (draw.choice(SNIPPETS) + content[at:] if what == "snippet" else content[end:])
