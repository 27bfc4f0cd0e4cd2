"""Digests and signatures are hexadecimal in signed metadata and bytes on the link.

Nothing makes them smaller than the bytes that they stand for, and a compressor of text leaves them a tenth larger. So
runs of exactly 64 or 128 hexadecimal digits (lower case) are taken out of the text before it is compressed:

    0x01 u16    stands for the digest of this number, little-endian
    0x02        a new digest, 64 digits: its 32 bytes are the next of the digits, which follow the text
    0x03        a signature, 128 digits: 64 bytes, likewise

Digests are numbered from 0 as they first appear, in the dictionary and then in the text; when there are 65,536, later
ones stay in the text. In the dictionary each is a number, the first time too, as it will be where it comes again;
signatures do not come again. The three marks cannot occur in metadata: JSON has no such characters.
"""

import re
from typing import Final

from sprat_shared.errors import InvalidInput

_RUN: Final = re.compile(rb"(?<![0-9a-f])(?:[0-9a-f]{64}){1,2}(?![0-9a-f])")
_MARK: Final = re.compile(rb"\x01(..)|[\x02\x03]", re.DOTALL)
_MARKS: Final = re.compile(rb"[\x01-\x03]")
_BYTES_OF: Final = {b"\x02": 32, b"\x03": 64}
_MARK_OF: Final = {64: b"\x02", 128: b"\x03"}
_SIGNATURE_DIGITS: Final = 128
_MOST_RUNS: Final = 1 << 16


class DigitRuns:
    """The digests that both sides have seen, in order."""

    def __init__(self) -> None:
        self._runs: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def learn(self, text: bytes) -> bytes:
        """Return the text of a dictionary with marks for its runs; its digests are known from now on.

        Raises:
            InvalidInput: it holds a mark, and so is no JSON.
        """
        _refuse_marks(text)

        def mark(run: re.Match[bytes]) -> bytes:
            if len(run[0]) == _SIGNATURE_DIGITS:
                return b"\x03"
            number = self._number(run[0])
            return run[0] if number is None else _reference(number)

        return _RUN.sub(mark, text)

    def take_out(self, text: bytes) -> tuple[bytes, bytes]:
        """Return the text with marks for its runs, and the bytes of the new ones.

        Raises:
            InvalidInput: it holds a mark, and so is no JSON.
        """
        _refuse_marks(text)
        digits = bytearray()

        def mark(run: re.Match[bytes]) -> bytes:
            if len(run[0]) != _SIGNATURE_DIGITS:
                is_known = run[0] in self._numbers
                number = self._number(run[0])
                if number is None:
                    return run[0]
                if is_known:
                    return _reference(number)
            digits.extend(bytes.fromhex(run[0].decode()))
            return _MARK_OF[len(run[0])]

        return _RUN.sub(mark, text), bytes(digits)

    def put_back(self, text: bytes, digits: bytes, *, length: int) -> bytes:
        """Return the text with its runs in their places; the inverse of `take_out` on the other side.

        Args:
            text: with marks.
            digits: begins with the bytes of the new runs.
            length: bytes that the result must have; no more are made.

        Raises:
            InvalidInput: a run is not there, or the result has another length.
        """
        whole, at, used = bytearray(), 0, 0
        for mark in _MARK.finditer(text):
            if mark[1] is None:
                size = _BYTES_OF[mark[0]]
                run = digits[used : used + size].hex().encode()
                used += size
                if mark[0] == b"\x02":
                    self._number(run)
            else:
                number = int.from_bytes(mark[1], "little")
                if number >= len(self._runs):
                    raise InvalidInput(f"poll answer: there is no digest {number}")
                run = self._runs[number]
            whole += text[at : mark.start()] + run
            at = mark.end()
            if len(whole) > length:
                break
        whole += text[at:]
        if used > len(digits) or len(whole) != length:
            raise InvalidInput(f"poll answer: the metadata do not have the {length} bytes that its head says")
        return bytes(whole)

    @staticmethod
    def new_bytes(text: bytes) -> int:
        """Return how many bytes the new runs of a text with marks have."""
        return sum(_BYTES_OF.get(mark[0], 0) for mark in _MARK.finditer(text))

    def _number(self, run: bytes) -> int | None:
        """Return the number of a digest, a new one for a new digest; None where there is none left."""
        if run not in self._numbers and len(self._runs) < _MOST_RUNS:
            self._numbers[run] = len(self._runs)
            self._runs.append(run)
        return self._numbers.get(run)


def _reference(number: int) -> bytes:
    return b"\x01" + number.to_bytes(2, "little")


def _refuse_marks(text: bytes) -> None:
    if _MARKS.search(text):
        raise InvalidInput("signed metadata hold a control character: they are no JSON")
