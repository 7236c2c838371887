"""What `schemathesis.sh` tells Schemathesis: what pictures are, and which refusals contradict the document."""

import base64
import re
import struct
import zlib

import schemathesis
from hypothesis import strategies as st


def png(side):
    """A grey PNG file."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + b"\x80" * 3 * side) * side))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


FILES = [base64.b64encode(png(side)).decode() for side in (16, 64)]
schemathesis.openapi.format("picture", st.sampled_from([*FILES, f"data:image/png;base64,{FILES[0]}"]))

# How the tables that bodies are checked by refuse a field.
REFUSED = re.compile(
    r": .* is not (a text|auto or|one of (?!this)|a whole number|a number|true|false|empty|a seed|factors by|a picture"
    r"|one picture|an object|a list|[0-9.]+, with)|is not a parameter of this path$|: is missing$"
)


@schemathesis.check
def fields_as_documented(ctx, response, case):
    """A body that the document allows is not refused for its fields."""
    is_allowed = case.meta is not None and case.meta.generation.mode.is_positive
    if is_allowed and response.status_code == 400:
        body = response.json()
        error = body.get("detail") or body.get("error")
        message = error["message"] if isinstance(error, dict) else error
        # Of the tensors of the Open Inference Protocol the document knows the names alone.
        assert case.path.startswith("/v2/") or not REFUSED.search(message), message
