"""Whole numbers in as few bytes as they need: LEB128, seven bits a byte, the lowest first."""

_MAX_BYTES = 6


def pack_leb128(value: int) -> bytes:
    """Return a number from 0 to 2^42 - 1 as 1 to 6 bytes."""
    out = bytearray()
    while value >> 7:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_leb128(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where what follows it begins.

    Raises:
        ValueError: the data end within it, or it takes more than 6 bytes.
    """
    value = 0
    for i, byte in enumerate(data[at : at + _MAX_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if not byte & 0x80:
            return value, at + i + 1
    raise ValueError("a number does not end")
