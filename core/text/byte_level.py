"""The characters byte-level vocabularies write bytes as."""

from __future__ import annotations


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, and every other byte for the next free
    character from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    for byte in range(256):
        if byte not in printable:
            table[chr(256 + len(table) - len(printable))] = byte
    return table


BYTE_OF = _byte_of_char()
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}
