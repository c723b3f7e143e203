"""Reading a SentencePiece tokenizer.model without its library: pieces, their kinds, the ids of the special ones.

Wire format: https://protobuf.dev/programming-guides/encoding/. Fields:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The file is a stranger's: every length is checked against
what is left before anything is taken, nothing recurses, and the counts are capped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmcheck import jsonfile
from llmcheck.errors import UserError

MAX_BYTES = 64 << 20  # the largest in use (Gemma's, 262,144 pieces) is below 5 MiB
MAX_PIECES = 2_000_000
MAX_PIECE_BYTES = 4096  # sentencepiece itself allows pieces of 16 characters unless told otherwise (trainer_spec.max_sentencepiece_length)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are not used by the format


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a tokenizer.model says. Special ids as the library's ``unk_id()``, ``bos_id()`` … give them; None where they give -1."""

    num_pieces: int
    ids: dict[str, int]  # piece -> id; of repeated pieces the first
    kinds: bytes  # the kind of each piece
    unk_id: int | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    byte_fallback: bool
    add_dummy_prefix: bool

    def kind(self, index: int) -> int:
        """The kind of the piece with this id."""
        return self.kinds[index]


@dataclass
class _Trainer:
    """The fields of trainer_spec that we use, with the format's defaults."""

    byte_fallback: bool = False
    pieces: dict[str, str] = field(default_factory=lambda: {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"})


_SPECIAL_PIECES = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}  # trainer_spec.unk_piece …


def read(path: str) -> SentencePieceModel:
    """The model at `path`. Raises UserError when it cannot be read, is larger than 64 MiB, or is not the format."""
    return parse(jsonfile.read_bytes(path, what="SentencePiece model", max_bytes=MAX_BYTES), where=path)


def parse(data: bytes, *, where: str) -> SentencePieceModel:
    """Like :func:`read`, for its bytes."""
    try:
        return _parse(data)
    except ValueError as reason:
        raise UserError(
            f"not a SentencePiece model: {where}", code="sentencepiece", where=where, why=str(reason), hint="download it again"
        ) from reason


def _parse(data: bytes) -> SentencePieceModel:
    ids: dict[str, int] = {}
    kinds = bytearray()
    trainer = _Trainer()
    dummy_prefix = True
    for number, value in _fields(data, 0, len(data)):
        if number == 1:
            text, kind = _piece(data, *_span(value))
            if len(kinds) >= MAX_PIECES:
                raise ValueError(f"more than {MAX_PIECES:,} pieces")
            ids.setdefault(text, len(kinds))
            kinds.append(kind)
        elif number == 2:
            _read_trainer(trainer, data, *_span(value))
        elif number == 3:
            for inner, flag in _fields(data, *_span(value)):
                if inner == 3:
                    dummy_prefix = bool(_integer(flag))
    if not kinds:
        raise ValueError("it holds no pieces")

    def special(name: str, kind: int) -> int | None:
        # The library looks the piece up and asks for its kind (SentencePieceProcessor::bos_id); trainer_spec's ids are not consulted.
        index = ids.get(trainer.pieces[name])
        return index if index is not None and kinds[index] == kind else None

    return SentencePieceModel(
        num_pieces=len(kinds), ids=ids, kinds=bytes(kinds), unk_id=special("unk", UNKNOWN), bos_id=special("bos", CONTROL),
        eos_id=special("eos", CONTROL), pad_id=special("pad", CONTROL), byte_fallback=trainer.byte_fallback, add_dummy_prefix=dummy_prefix,
    )  # fmt: skip


def _piece(data: bytes, start: int, end: int) -> tuple[str, int]:
    text, kind = "", NORMAL
    for number, value in _fields(data, start, end):
        if number == 1:
            text = _text(data, value)
        elif number == 3:
            kind = _integer(value)
            if not NORMAL <= kind <= BYTE:
                raise ValueError(f"a piece of kind {kind}")
    return text, kind


def _read_trainer(trainer: _Trainer, data: bytes, start: int, end: int) -> None:
    for number, value in _fields(data, start, end):
        if number == 35:
            trainer.byte_fallback = bool(_integer(value))
        elif number in _SPECIAL_PIECES:
            trainer.pieces[_SPECIAL_PIECES[number]] = _text(data, value)


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """(field number, value) of one message: an integer, or the span of its bytes."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position}")
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, value
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
            if position > end:
                raise ValueError("it ends inside a number")
            yield number, 0  # scores and thresholds: never used
        elif wire == _BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError(f"a field of {length} bytes where {end - position} are left")
            yield number, (position, position + length)
            position += length
        else:
            raise ValueError(f"wire type {wire} at byte {position}")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end:
            raise ValueError("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 10 bytes at byte {position}")


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def _integer(value: int | tuple[int, int]) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number is expected")
    return value


def _text(data: bytes, value: int | tuple[int, int]) -> str:
    start, end = _span(value)
    if end - start > MAX_PIECE_BYTES:
        raise ValueError(f"a piece of {end - start} bytes")
    return data[start:end].decode("utf-8")  # UnicodeDecodeError is a ValueError
