"""Pictures as Pillow, numpy and plain bytes have them. Neither package is needed until one of its pictures is."""

from typing import Any

from .errors import InputError, RequestError

#: Width, height and bytes, three a pixel.
Raw = "tuple[int, int, bytes]"


def read(picture: Any, name: str, gray: bool = False) -> "tuple[int, int, bytes]":
    """Bytes of a Pillow image, of an array ``[height, width, 3]`` or ``[height, width]`` (uint8, or floats from 0 to 1), of a
    file, or of ``(width, height, bytes)``."""
    if isinstance(picture, tuple) and len(picture) == 3 and isinstance(picture[2], (bytes, bytearray)):
        return (int(picture[0]), int(picture[1]), bytes(picture[2]))
    if isinstance(picture, str) or hasattr(picture, "__fspath__"):
        try:
            picture = _pillow(name).open(picture)
        except OSError as error:
            raise InputError(f"{name}: {error}") from error
    if hasattr(picture, "convert") and hasattr(picture, "tobytes"):
        mode = picture.convert("L").convert("RGB") if gray else picture.convert("RGB")
        return (mode.width, mode.height, mode.tobytes())
    if hasattr(picture, "__array_interface__"):
        return _of_array(picture, name)
    raise RequestError(f"{name}: a {type(picture).__name__} is no picture; expected Pillow's, numpy's, a path or (width, "
                       "height, bytes)")


def _of_array(array: Any, name: str) -> "tuple[int, int, bytes]":
    import numpy

    array = numpy.asarray(array)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = numpy.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise RequestError(f"{name}: an array of the shape {tuple(array.shape)} is no picture [height, width, 3]")
    if array.dtype != numpy.uint8:
        if not (numpy.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise RequestError(f"{name}: numbers are to be from 0 to 1, or bytes")
        array = (array * 255).round().astype(numpy.uint8)
    return (array.shape[1], array.shape[0], numpy.ascontiguousarray(array).tobytes())


def write(pictures: "list[tuple[int, int, bytes]]", output_type: str) -> Any:
    """``pil``: Pillow images; ``np``: an array ``[n, height, width, 3]`` of floats from 0 to 1; ``bytes``: tuples."""
    if output_type == "bytes":
        return pictures
    if output_type == "np":
        try:
            import numpy
        except ImportError as error:
            raise RequestError("output_type: 'np' needs numpy, and 'bytes' nothing") from error
        arrays = [numpy.frombuffer(data, numpy.uint8).reshape(height, width, 3) for width, height, data in pictures]
        return numpy.stack(arrays).astype(numpy.float32) / 255
    return [_pillow("output_type").frombytes("RGB", (width, height), data) for width, height, data in pictures]


def _pillow(name: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise RequestError(f"{name}: Pillow is not installed (pip install pillow); 'np' and 'bytes' do without") from error
    return Image
