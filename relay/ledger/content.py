"""Packs a dead letter's attributes and data into compressed bytes, as both ledgers store them."""

import zlib

from relay.ledger import DeadLetter, LetterDamaged

_LENGTH_BYTES = 4


def pack(letter: DeadLetter) -> bytes:
    """The letter's attributes and data, compressed. Takes a third of a second for 10 MB."""
    attributes = letter.attributes.encode()
    compressor = zlib.compressobj()
    return b"".join(
        (
            compressor.compress(len(attributes).to_bytes(_LENGTH_BYTES, "big")),
            compressor.compress(attributes),
            compressor.compress(letter.data),
            compressor.flush(),
        )
    )


def unpack(letter_id: str, content: bytes) -> tuple[str, bytes]:
    """The attributes and the data. Raises `LetterDamaged` if `content` can't be decompressed."""
    try:
        whole = memoryview(zlib.decompress(content))
    except zlib.error:
        what = f"the payload can't be decompressed (dead letter {letter_id})"
        raise LetterDamaged(what) from None
    begin = _LENGTH_BYTES + int.from_bytes(whole[:_LENGTH_BYTES], "big")
    return bytes(whole[_LENGTH_BYTES:begin]).decode(), bytes(whole[begin:])
