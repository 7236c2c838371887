"""Packs a folder into pieces, each in a folder of its own: python pack.py FOLDER PIECES. Unpacks: pack.py --unpack PIECES FOLDER."""

import hashlib
import io
import pathlib
import shutil
import sys
import tarfile

# A piece travels together with the checkout, of which the whole may be 64 MiB.
PIECE = 30 << 20


def pack(folder, pieces):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        tar.add(folder, arcname=".")
    data = packed.getvalue()
    starts = range(0, len(data), PIECE)
    for i, start in enumerate(starts, 1):
        piece = pieces / str(i)
        piece.mkdir(parents=True)
        (piece / "part").write_bytes(data[start : start + PIECE])
        (piece / "whole").write_text(f"{len(starts)} {hashlib.sha256(data).hexdigest()}")


def unpack(pieces, folder):
    """Unpacks what is not there already; an unpacked folder stays where no pieces are."""
    parts = sorted(pieces.glob("*/part"), key=lambda part: int(part.parent.name))
    if not parts:
        return folder.is_dir() or sys.exit(f"{pieces}: no pieces; tests/gpu/prepare.sh makes them")
    whole = {part.with_name("whole").read_text() for part in parts}
    data = b"".join(part.read_bytes() for part in parts)
    told = f"{len(parts)} {hashlib.sha256(data).hexdigest()}"
    if whole != {told}:
        sys.exit(f"{pieces}: {len(parts)} pieces that do not make a whole ({', '.join(sorted(whole))})")
    stamp = folder / "whole"
    if stamp.exists() and stamp.read_text() == told:
        return
    partial = folder.with_name(f"{folder.name}.partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        tar.extractall(partial)
    (partial / "whole").write_text(told)
    partial.rename(folder)


if sys.argv[1] == "--unpack":
    unpack(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
else:
    pack(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
