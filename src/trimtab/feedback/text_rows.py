"""Text that comes in parts: its characters, its lines, and the rows of CSV."""

import codecs
import csv
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import chain

from trimtab.errors import UserError
from trimtab.feedback.json_rows import RawRow

UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def texts(parts: Iterator[bytes], name: str) -> Iterator[str]:
    """Text from UTF-8, or from UTF-16 with its byte order mark, part by part."""
    first = next(parts, b"")
    encoding = "utf-16" if first[:2] in UTF_16 else "utf-8-sig"
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    for part in chain([first], parts, [b""]):
        try:
            yield decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            byte = error.object[min(error.start, len(error.object) - 1)]
            raise UserError(
                f"{name}:{line}: the file is not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8, "
                f"for example with iconv -t UTF-8 -f and its encoding"
            ) from error
        line += part.count(b"\n")


def lines(parts: Iterator[str]) -> Iterator[str]:
    """The lines of a text that comes in parts, without their line feeds."""
    begun: list[str] = []
    for text in parts:
        first, *others = text.split("\n")
        begun.append(first)
        if others:
            yield "".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    yield "".join(begun)


def csv_rows(parts: Iterator[str], name: str) -> Iterator[RawRow]:
    """CSV with a header. A quoted field may span lines; the row's place is its first line."""
    csv.field_size_limit(sys.maxsize)  # the default refuses fields of more than 128 KiB
    reader = csv.reader(_csv_lines(parts), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            place, line = f"{name}:{line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, name)
            elif len(cells) != len(header):
                problem = f"the row has {len(cells)} cells, but the header has {len(header)}"
                yield RawRow(place, cells, problem)
            else:
                yield RawRow(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{name}:{line}: broken CSV ({error}); fix the file") from error


def _csv_lines(parts: Iterator[str]) -> Iterator[str]:
    """Lines with their ends, which may be a line feed, a carriage return, or both."""
    begun = ""
    for text in parts:
        *lines, begun = StringIO(begun + text, newline="").readlines() or [""]
        if begun.endswith("\n"):
            yield from (*lines, begun)
            begun = ""
        else:  # the next part may go on with this line, or end its carriage return with a line feed
            yield from lines
    if begun:
        yield begun


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(set(header)) < len(header):
        raise UserError(f"{name}:1: the header names a column twice; rename one")
    return header
