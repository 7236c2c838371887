"""Packs a folder into pieces, each in a folder of its own: python pack.py FOLDER PIECES. Unpacks: pack.py --unpack PIECES FOLDER."""

import io
import pathlib
import sys
import tarfile

PIECE = 55 << 20


def pack(folder, pieces):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        tar.add(folder, arcname=".")
    data = packed.getvalue()
    for i, start in enumerate(range(0, len(data), PIECE), 1):
        piece = pieces / str(i)
        piece.mkdir(parents=True)
        (piece / "part").write_bytes(data[start : start + PIECE])


def unpack(pieces, folder):
    parts = sorted(pieces.glob("*/part"), key=lambda part: int(part.parent.name))
    data = b"".join(part.read_bytes() for part in parts)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        tar.extractall(folder)


if sys.argv[1] == "--unpack":
    unpack(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
else:
    pack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
