"""What goes wrong in values: odd text, numbers at the edge, other types; and edits of rows and of bytes."""

import copy
import math
from typing import Any

from hypothesis import strategies as st

ODD_TEXT = [
    "", " ", "\n", "\r", "\r\n", "\x00", "\x07", "\x1b[31m", "\u0085", "\u2028", "\u202e", "\u200b", "\ufeff",
    "e\u0301", "\u0301", "👍🏽", "\ud83d", "a\udc00", "\U0010ffff", "\ufffe", "\ufffd", "１２", "nan", "-inf",
    "1_0", "true", "no", "0", "null", "~", "Human: a\n\nAssistant: b", " Human: a\n\nAssistant: c", "../../x",
    "=1+1", "a,b", '"', "'", "\\", "\\ud800", "{", "[", "<script>", "%s{}", "[/b]", "x" * 3000, "é" * 300,
]  # fmt: skip
NUMBERS = [
    0, -0.0, 1, -1, 2, 0.5, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, 2**31, 2**63, 2**70,
    10**400,
]  # fmt: skip
TURN = {"role": "user", "content": "a"}
OTHER_TYPES: list[Any] = [
    None, True, False, [], {}, [[]], [None], {"": None}, [TURN],
    [TURN, {"role": "assistant", "content": "b"}], {"role": [], "text": "a"}, {"from": "gpt", "value": None},
    [{"role": "robot", "content": "x"}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
    {"role": "prompter", "text": "a", "replies": 5}, [1, "2", None], {"role": "system", "content": ""},
]  # fmt: skip

TEXT = st.one_of(st.sampled_from(ODD_TEXT), st.text(max_size=8), st.text(st.characters(), max_size=4))
JUNK = st.one_of(TEXT, st.sampled_from(NUMBERS), st.sampled_from(OTHER_TYPES))
NESTED = st.recursive(
    JUNK, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)

Path = tuple[Any, ...]


def paths(value: Any) -> list[Path]:
    """Where every value within a value stands, itself first."""
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [(), *((key, *rest) for key, item in inner for rest in paths(item))]


@st.composite
def edited(draw: st.DrawFn, value: Any, others: st.SearchStrategy[Any] = NESTED) -> Any:
    """A copy with up to three edits: something replaced, left out, added, said twice or named otherwise."""
    root = {"root": copy.deepcopy(value)}
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 3)))):
        path = draw(st.sampled_from(paths(root)[1:]))
        box: Any = root
        for step in path[:-1]:
            box = box[step]
        edit = draw(st.sampled_from(("replace", "replace", "drop", "add", "rename")))
        if edit == "replace" or len(path) == 1:
            box[path[-1]] = copy.deepcopy(draw(others))
        elif edit == "drop":
            del box[path[-1]]
        elif isinstance(box, list):
            box.append(copy.deepcopy(draw(others)) if edit == "add" else box[path[-1]])
        elif edit == "add":
            box[draw(TEXT)] = copy.deepcopy(draw(others))
        else:
            box[draw(TEXT)] = box.pop(path[-1])
        if not root:
            break
    return root.get("root")


BAD_BYTES = [
    b"\x00", b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf8\x88", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8",
    b"\r",
    b"\n", b"\n\n", b"x", b" ", b'"', b"'", b"\\", b"\\u", b"\\ud83d", b"{", b"}", b"[", b"]", b",", b":",
    b"&a ", b"*a", b"- ",
    b"!!python/object:os.system ", b"? ", b"<<: ", b"---\n", b"...", b"%YAML 9\n", b"\t", b"#", b"NaN",
    b"Infinity",
    b"1e999", b"-", b"0x", b"9" * 5000, b"null", b"true", b"\x1f\x8b", b"PAR1",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes after one to four accidents: cut off, changed, left out, put in, doubled."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        place = draw(st.integers(0, 2**16)) * (len(data) + 1) >> 16
        end = place + draw(st.sampled_from((1, 1, 2, 7, 64)))
        accident = draw(st.sampled_from(("put in", "put in", "change", "leave out", "double", "cut off")))
        if accident == "put in":
            data = data[:place] + draw(st.sampled_from(BAD_BYTES)) + data[place:]
        elif accident == "change":
            data = data[:place] + draw(st.binary(min_size=1, max_size=2)) + data[end:]
        elif accident == "leave out":
            data = data[:place] + data[end:]
        elif accident == "double":
            data = data[:end] + data[place:end] + data[end:]
        else:
            data = data[:place]
    return data
