"""Mutations of JSON: of the value, and of the bytes that spell it.

A mutated value may hold ``Raw`` (bytes that stand in the text as they are: numbers too long for Python, NaN, nesting
too deep to build) and ``Pairs`` (an object that repeats a key), which is why it has an encoder of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in the text as they are."""

    text: bytes


@dataclass(frozen=True)
class Pairs:
    """An object by its pairs, keys repeated or not."""

    pairs: tuple[tuple[str, Any], ...]


NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**48, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30),
    10**400, 10**4299,
    0.5, 1.5, 2.0, -0.0, 1e-320, 1e38, 1e39, 1e308, Raw(b"1e999"), Raw(b"-1e999"), Raw(b"1e-999"), Raw(b"NaN"),
    Raw(b"Infinity"),
    Raw(b"-Infinity"), Raw(b"9" * 5000), Raw(b"-" + b"9" * 5000), Raw(b"0x10"), Raw(b"01"), Raw(b"1."), Raw(b"+1"),
)  # fmt: skip
NESTED = (
    *(Raw(b"[" * depth + b"1" + b"]" * depth) for depth in (30, 300, 800, 5000, 100_000)),
    *(Raw(b'{"a":' * depth + b"1" + b"}" * depth) for depth in (30, 300, 900, 20_000)),
)
TEXTS: tuple[Any, ...] = (
    "", "0", "1", "true", "null", "\x00", "\ud800", "\udfff\ud800", "a\nb", "\u202e", "é" * 200, "x" * 70_000,
    "." * 300, "../x", "/etc/passwd",
    "model.safetensors", "F32", "float32", "bfloat16", "float64", "all-linear", "none", "lora_only", "\u0663",
    "a" * 255, "-", "%s%n", "{}", "{0}",
)  # fmt: skip
PATTERNS = (
    "(a+)+$", "(.*)*x", "(.|.)" * 30, "(?:.|..|...)" * 20 + "!", "(?x)(.* )*z", "(?x) ( .* ) * z", "(?x:(.*) *z)",
    ".*.*.*.*.*.*x", ".*" * 200,
    ".?" * 300 + "!", "(?=(.*))\\1x", "(?:(?=.*x).)*y", "(?<!a)b", "(?<=.*)x", "a{1,2147483647}", "a{99999999999}",
    "(a{1,60000}){1,60000}", "(.{0,2000}){3}",
    "(?P<n>.*)(?P=n)(?P=n)(?P=n)x", "(?P<n>a)(?P<n>b)", "[[a]", "[a&&b]", "(?i)q", "q(?i)", "((((", "a)(b", "\\", "[",
    "*", "(?#", "(?(1)a|b)",
    "(x)?(?(1)a|b)", "a*+a", "(?>a*)a", "(q|q_|q_p|q_pr|q_proj|.)" * 8, ".*(_|p|r|o|j|.)*z", "^$", "$^", "\\b" * 500,
    "(" * 500 + ")" * 500,
    "(" * 3000 + ")" * 3000, "|" * 1999, "|" * 100_000, "(?:" * 90 + "a" + "?)" * 90, "\\N{DIGIT ONE}", "\\777",
    "\\u12", "[^\\W\\d_]+", "[z-a]",
    ".*\\.q_proj", "q_proj", ".*gate_up_proj", "experts.*", "\\d+\\.(.*)", "(?s).*", "\\Z", "\\A.*",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    True,
    False,
    None,
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    {"a": None},
    [None],
    [True],
    [1, 1],
    ["", ""],
)


def hostile(random: Random) -> Any:
    """Return a value that is not expected anywhere, or plausible in another place."""
    kind = random.random()
    if kind < 0.4:
        value: Any = random.choice(NUMBERS)
    elif kind < 0.55:
        value = random.choice(TEXTS)
    elif kind < 0.65:
        value = random.choice(PATTERNS)
    elif kind < 0.7:
        value = random.choice(NESTED)
    elif kind < 0.9:
        value = copy.deepcopy(random.choice(HOSTILE))
    elif kind < 0.95:
        value = [hostile(random) for _ in range(random.randrange(4))]
    else:
        value = {str(random.choice((*TEXTS, *PATTERNS))): hostile(random) for _ in range(random.randrange(1, 3))}
    return value


def containers(value: Any) -> list[Any]:
    """Return every object and list inside a value, itself included."""
    found: list[Any] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            found.append(one)
            waiting += one.values() if isinstance(one, dict) else one
    return found


def _key(random: Random, one: Any) -> Any:
    return random.choice(list(one)) if isinstance(one, dict) else random.randrange(len(one))


def _replace(random: Random, one: Any) -> None:
    one[_key(random, one)] = hostile(random)


def _delete(random: Random, one: Any) -> None:
    del one[_key(random, one)]


def _nudge(random: Random, one: Any) -> None:
    """Change a number a little, or a text by one character; what is neither becomes its own list."""
    key = _key(random, one)
    value = one[key]
    if type(value) in {int, float} and abs(value) < 2**63:
        one[key] = random.choice(
            (value + 1, value - 1, -value, value * 2, float(value), str(value), value + 0.5, bool(value))
        )
    elif isinstance(value, str) and value:
        at = random.randrange(len(value))
        put = random.choice(("", "x", ".", "*", "\\", "9", "\ud800", "\x00", value, value[at] * 2))
        one[key] = value[:at] + put + value[at + 1 :]
    else:
        one[key] = [value]


def _move(random: Random, one: Any) -> None:
    """Exchange two values of one container, or give one another's."""
    first, second = _key(random, one), _key(random, one)
    if random.random() < 0.5:
        one[first], one[second] = one[second], one[first]
    else:
        one[first] = copy.deepcopy(one[second])


def _rename(random: Random, one: Any) -> None:
    if isinstance(one, dict):
        key = _key(random, one)
        name = random.choice(
            (str(random.choice(TEXTS)), str(random.choice(PATTERNS)), f"{key}x", key[:-1], key.upper())
        )
        one[name] = one.pop(key)
    else:
        one.insert(random.randrange(len(one)), copy.deepcopy(random.choice(one)))


def _insert(random: Random, one: Any) -> None:
    if isinstance(one, dict):
        one[str(random.choice((*TEXTS, *PATTERNS)))] = hostile(random)
    else:
        one.insert(random.randrange(len(one) + 1), hostile(random))


CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _replace,
    _replace,
    _replace,
    _delete,
    _nudge,
    _nudge,
    _move,
    _rename,
    _insert,
)


def mutate_value(random: Random, value: Any) -> Any:
    """Return a copy of a JSON value with one thing changed in it; now and then the whole is something else."""
    value = copy.deepcopy(value)
    places = [one for one in containers(value) if one]
    if not places or random.random() < 0.02:
        return hostile(random)
    # Settings at the top are as likely as the many small objects below them.
    one = value if random.random() < 0.4 and value in places else random.choice(places)
    if random.random() < 0.03 and isinstance(one, dict):
        return _repeated(random, value, one)
    random.choice(CHANGES)(random, one)
    return value


def _repeated(random: Random, value: Any, one: dict[str, Any]) -> Any:
    """Return the value with a key of ``one`` repeated."""
    key = _key(random, one)
    again = Pairs((*one.items(), (key, random.choice((one[key], hostile(random))))))
    if one is value:
        return again

    def put(part: Any) -> Any:
        if part is one:
            return again
        if isinstance(part, dict):
            return {name: put(item) for name, item in part.items()}
        return [put(item) for item in part] if isinstance(part, list) else part

    return put(value)


def encode(value: Any) -> bytes:
    """Return the text of a value that may hold ``Raw`` and ``Pairs``."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs | dict):
        pairs = value.pairs if isinstance(value, Pairs) else tuple(value.items())
        return b"{" + b",".join(json.dumps(str(key)).encode() + b":" + encode(item) for key, item in pairs) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(encode(item) for item in value) + b"]"
    return json.dumps(value).encode()


def mutate_text(random: Random, data: bytes) -> bytes:
    """Return bytes that are no longer the JSON text they were, or only just."""
    at = random.randrange(len(data) + 1)
    text = data.decode("latin-1")
    changed: tuple[bytes, ...] = (
        data[:at], data[at:], data + data, b"\xef\xbb\xbf" + data, data[:at] + b"\xff\xfe" + data[at:],
        data[:at] + b"\x00" + data[at:],
        data[:at] + bytes([random.randrange(256)]) + data[at + 1 :], text.encode("utf-16"), text.encode("utf-32"), b"",
        b" " * 1000 + data,
        data.replace(b",", b",,", 1), data.replace(b'"', b"'"), data + b"}", data.replace(b":", b" :\n\t"),
        data[:at] + b"/* */" + data[at:],
        data.replace(b'"', b'"\xc3\x28', 1), data.replace(b"a", b"\\u0061"), data.replace(b'":', b'\\ud83d":', 1),
        b"[" * 50_000, b'"' * 3,
        data[:at] + b"\xed\xa0\x80" + data[at:], data[:at] + b"\\" + data[at:],
    )  # fmt: skip
    return random.choice(changed)
