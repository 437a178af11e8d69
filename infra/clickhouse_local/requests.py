"""Where the statement of a request is, and where its rows: in the URL, in the body, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.clickhouse_local.parsing import HEAD_BYTES_MAX, BadStatement, Parser, Statement
from infra.clickhouse_local.request_bodies import DECODED_BYTES_MAX, BodyTooLarge, decoded

Request = tuple[Statement, Sequence[bytes], str]
"""The statement, the rows that come with it, and their encoding."""


def read_request(parser: Parser, sql: str, body: Sequence[bytes], encoding: str) -> Request:
    """`sql` is what the URL says. Raises BadStatement, EngineError, BadBody, BodyTooLarge."""
    return _in_url(parser, sql, body, encoding) if sql else _in_body(parser, body, encoding)


def _in_body(parser: Parser, body: Sequence[bytes], encoding: str) -> Request:
    data = b"".join(_bounded(decoded(body, encoding)))
    text = data[:HEAD_BYTES_MAX].decode("utf-8", "replace")
    insert = parser.insert(text)
    if insert is not None:
        return insert, [data[len(insert.text.encode()) :]], ""
    if len(data) > HEAD_BYTES_MAX:
        raise BadStatement(62, "SYNTAX_ERROR", f"The statement is longer than {HEAD_BYTES_MAX} bytes")
    return parser.statement(text), [], ""


def _in_url(parser: Parser, sql: str, body: Sequence[bytes], encoding: str) -> Request:
    """The body holds the rows of an INSERT … FORMAT, or goes on where the URL ends."""
    insert = parser.insert(sql)
    if insert is not None:
        inline = sql[len(insert.text) :]
        if not inline.strip():
            return insert, body, encoding
        return insert, [inline.encode(), b"\n", *_bounded(decoded(body, encoding))], ""
    rest = b"".join(_bounded(decoded(body, encoding)))
    return _in_body(parser, [sql.encode(), b"\n", rest], "") if rest else (parser.statement(sql), [], "")


def _bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > DECODED_BYTES_MAX:
            raise BodyTooLarge(f"> {DECODED_BYTES_MAX}")
        yield piece
