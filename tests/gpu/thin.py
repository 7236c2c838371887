"""Leaves a library's GPU code for one architecture alone: python thin.py LIBRARY OUT ARCHITECTURE, as in 90.

What is for others becomes zeros in its place, so that nothing moves; the file packs to a fraction of what it was.
"""

import pathlib
import struct
import sys

CONTAINER = struct.pack("<IH", 0xBA55ED50, 1)
ELF = 2


def thin(data, architecture):
    """Blanks what is not for the architecture; how many bytes."""
    at, blanked = data.find(CONTAINER), 0
    while at >= 0:
        header, size = struct.unpack_from("<HQ", data, at + 6)
        entries, entry, end = [], at + header, at + header + size
        while entry < end:
            kind, _, entry_header, length = struct.unpack_from("<HHIQ", data, entry)
            (number,) = struct.unpack_from("<I", data, entry + 28)
            entries.append((kind, number, entry + entry_header, length))
            entry += entry_header + length
        # Where there is no machine code for the device, its driver compiles what PTX there is.
        has_own = any(kind == ELF and number == architecture for kind, number, _, _ in entries)
        for kind, number, start, length in entries:
            if not (kind == ELF and number == architecture) and (kind == ELF or has_own):
                data[start : start + length] = bytes(length)
                blanked += length
        at = data.find(CONTAINER, max(end, at + 1))
    return blanked


library, out, architecture = sys.argv[1:]
data = bytearray(pathlib.Path(library).read_bytes())
blanked = thin(data, int(architecture))
pathlib.Path(out).write_bytes(data)
print(f"{blanked >> 20} of {len(data) >> 20} MiB blanked")
