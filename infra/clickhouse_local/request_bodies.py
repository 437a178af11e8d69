"""Request bodies as files in memory: decompressed frame by frame, bounded, gone when closed and gone after a crash."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, cast

import lz4.frame
import zstandard

DECODED_BYTES_MAX = 512 << 20
"""Largest body after decompression: ten times the largest insert of our own."""
FORM_BYTES_MAX, FORM_FIELDS_MAX = 1 << 20, 256
"""Bounds of a statement that comes as a form. A client takes one when its parameters are too long for a URL."""
_PIECE = 1 << 20
_IOVECS = 512


class BodyTooLarge(Exception):
    """More than the bound, possibly a bomb."""


class BadBody(Exception):
    """The body is not what its Content-Encoding says."""


def decoded(body: Sequence[bytes], encoding: str) -> Iterator[bytes]:
    """The body's pieces, decompressed. Several frames may follow one another: all are read. Raises BadBody, BodyTooLarge."""
    try:
        if encoding in ("", "identity"):
            yield from body
        elif encoding in ("gzip", "x-gzip", "deflate"):
            yield from _frames(body, lambda: _Zlib(31 if "gzip" in encoding else 15))
        elif encoding == "zstd":
            yield from _frames(body, _Zstd)
        elif encoding == "lz4":
            yield from _frames(body, _Lz4)
        else:
            raise BadBody(f"Content-Encoding {encoding[:32]!r} is not one of gzip, deflate, zstd, lz4")
    except (zlib.error, zstandard.ZstdError, RuntimeError, EOFError) as e:
        raise BadBody(f"the body is not {encoding}: {e}") from e


def form_fields(body: Sequence[bytes], content_type: str) -> dict[str, str]:
    """The fields of a `multipart/form-data` body (RFC 7578): `query`, `param_x`, … Files are refused. Raises BadBody, BodyTooLarge."""
    if sum(map(len, body)) > FORM_BYTES_MAX:
        raise BodyTooLarge(f"a form of more than {FORM_BYTES_MAX} bytes")
    header = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(header + b"".join(body))
    parts = list(message.iter_parts()) if message.is_multipart() else []
    if not parts or len(parts) > FORM_FIELDS_MAX or message.defects:
        raise BadBody(f"the form cannot be read, or has no field or more than {FORM_FIELDS_MAX}")
    fields = dict[str, str]()
    for part in parts:
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.get_filename() is not None:
            raise BadBody("a form has fields with names and no files; external data is not supported here")
        value = part.get_payload(decode=True)
        fields[name] = cast(bytes, value).decode("utf-8", "replace")
    return fields


def in_memory(pieces: Iterator[bytes]) -> tuple[int, int]:
    """(file descriptor, bytes) of a file that exists only in memory. The caller closes it. Raises BodyTooLarge."""
    fd, total, waiting = os.memfd_create("insert", os.MFD_CLOEXEC), 0, list[bytes]()
    try:
        for piece in pieces:
            total += len(piece)
            if total > DECODED_BYTES_MAX:
                raise BodyTooLarge(f"more than {DECODED_BYTES_MAX} bytes")
            waiting.append(piece)
            if len(waiting) >= _IOVECS:
                _write(fd, waiting)
                waiting.clear()
        _write(fd, waiting)
    except BaseException:
        os.close(fd)
        raise
    return fd, total


def _write(fd: int, pieces: list[bytes]) -> None:
    size = sum(map(len, pieces))
    if pieces and os.writev(fd, pieces) != size:
        raise OSError("short write to memory")


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._d = zlib.decompressobj(bits)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        out = self._d.decompress(data, _PIECE)
        return out, self._d.unconsumed_tail or self._d.unused_data

    @property
    def done(self) -> bool:
        return self._d.eof


class _Lz4:
    def __init__(self) -> None:
        self._d: Any = lz4.frame.LZ4FrameDecompressor()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        out = self._d.decompress(data, _PIECE)
        while not self._d.eof and not self._d.needs_input and len(out) < _PIECE:
            out += self._d.decompress(b"", _PIECE)
        return out, self._d.unused_data or b""

    @property
    def done(self) -> bool:
        return bool(self._d.eof)

    @property
    def more(self) -> bool:
        return not self._d.eof and not self._d.needs_input


class _Zstd:
    def __init__(self) -> None:
        self._d: Any = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj(write_size=_PIECE)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return self._d.decompress(data), self._d.unused_data

    @property
    def done(self) -> bool:
        return bool(self._d.eof)


def _frames(body: Sequence[bytes], new: Any) -> Iterator[bytes]:
    """Feeds small slices, so that a bomb is noticed after a bounded blow-up."""
    frame, fed = new(), False
    for piece in body:
        for at in range(0, len(piece), 16384):
            data = piece[at : at + 16384]
            while data or getattr(frame, "more", False):
                if frame.done:
                    frame, fed = new(), False
                out, data = frame.feed(data)
                fed = True
                if out:
                    yield out
    if fed and not frame.done:
        raise EOFError("it ends in the middle of a frame")


__all__ = ["DECODED_BYTES_MAX", "BadBody", "BodyTooLarge", "decoded", "form_fields", "in_memory"]
