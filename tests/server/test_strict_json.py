"""Strict JSON: what is refused, and that reading takes time linear in the length."""

import json
import re
from contextlib import suppress

import pytest

from growth import LINEAR, exponent
from trimtab.errors import InvalidRequest
from trimtab_server import bodies

pytestmark = pytest.mark.scorecard(letter="B")

KB = 2**10
HOSTILE = {
    "unterminated string of escaped quotes": lambda n: b'{"prompt": "' + b'\\"' * (n // 2),
    "three quotes, unterminated": lambda n: b'{"prompt": "\\"\\"\\"' + b"a" * n,
    "quotes": lambda n: b'{"prompt": "' + b'"' * n,
    "backslashes": lambda n: b'{"prompt": "' + b"\\" * n,
    "backslashes, terminated": lambda n: b'{"prompt": "' + b"\\" * (n // 2 * 2) + b'"}',
    "strings in a list": lambda n: b'{"a": [' + b'"",' * (n // 3) + b'""]}',
    "brackets": lambda n: b'{"a": ' + b"[" * n,
    "brackets in a string": lambda n: b'{"a": "' + b"[{" * (n // 2),
    "braces": lambda n: b'{"a":' * (n // 5),
    "empty lists": lambda n: b'{"a": [' + b"[]," * (n // 3) + b"[]]}",
    "keys": lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n // 8)) + b"}",
    "the same key": lambda n: b"{" + b'"a":1,' * (n // 6) + b'"a":1}',
    "digits": lambda n: b'{"a": ' + b"9" * n + b"}",
    "digits of a fraction": lambda n: b'{"a": 0.' + b"9" * n + b"}",
    "digits before an exponent": lambda n: b'{"a": ' + b"9" * n + b"e-9}",
    "integers": lambda n: b'{"a": [' + b"1," * (n // 2) + b"1]}",
    "minus signs": lambda n: b'{"a": ' + b"-" * n + b"1}",
    "escapes": lambda n: b'{"a": "' + b"\\u0041" * (n // 6) + b'"}',
    "high surrogates": lambda n: b'{"a": "' + b"\\ud800" * (n // 6) + b'"}',
    "spaces": lambda n: b'{"a": 1' + b" " * n,
    "lines": lambda n: b"{" + b"\n" * n + b"x",
    "continuation bytes": lambda n: b'{"a": "' + b"\x80" * n + b'"}',
    "emoji": lambda n: b'{"a": "' + "🙂".encode() * (n // 4),
}

REFUSED = {
    b"": "not valid JSON",
    b"{": "line 1, column 2",
    b'{"a":\n 01}': "line 2",
    b"[]": "must be a JSON object",
    b"5": "must be a JSON object",
    b'{"a": NaN}': "finite",
    b'{"a": -Infinity}': "finite",
    b'{"a": 1e999}': "64-bit float",
    b'{"a": [-1E+400]}': "64-bit float",
    b'{"a": -1' + b"0" * 400 + b"}": "300 digits",
    b'{"a": ' + b"9" * 5000 + b"}": "300 digits",
    b'{"a": 1, "a": 1}': "duplicate key",
    b'{"a": {"\\u0061": 1, "a": 1}}': "duplicate key",
    b'{"a": "\\ud800"}': "surrogates",
    b'{"a": "\\udc00\\ud800"}': "surrogates",
    b'{"\\udfff": 1}': "surrogates",
    b'{"a": "\xff"}': "UTF-8",
    b'{"a": "\xed\xa0\x80"}': "UTF-8",
    '{"a": 1}'.encode("utf-16"): "UTF-8",
    b'\xef\xbb\xbf{"a": 1}': "not valid JSON",
    b'{"a": 1} x': "extra data",
    b'{"a": "\n"}': "control character",
    b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}": "64 levels",
    b'{"a": ' + b"[" * 100_000: "64 levels",
    b'{"a":' * 100_000: "64 levels",
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: repr(body[:24]))
def test_what_is_refused(body):
    with pytest.raises(InvalidRequest, match=REFUSED[body]):
        bodies.loads(body)


def test_what_passes():
    whole = {"a": [1, -2.5, 1e308, None, True, "né 🙂 \u2028"], "b": {"": {}}, "c": 10**299}
    assert bodies.loads(json.dumps(whole).encode()) == whole
    assert bodies.loads(json.dumps(whole, ensure_ascii=False).encode()) == whole
    deepest = b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}"
    assert bodies.loads(deepest)
    assert bodies.loads(b'{"a": "[[[' + b"[" * 999 + b'"}')


def attempt(body):
    with suppress(InvalidRequest):
        bodies.loads(body)


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_length(name):
    bodies = {size: HOSTILE[name](size) for size in (64 * KB, 1024 * KB)}
    assert exponent(lambda size: attempt(bodies[size]), 64 * KB) < LINEAR


def test_a_pattern_that_goes_back_would_be_noticed():
    """The control: what looked for brackets outside strings before."""
    string = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
    make = HOSTILE["unterminated string of escaped quotes"]
    assert exponent(lambda size: string.sub(b"", make(size)), KB, 8) > LINEAR
