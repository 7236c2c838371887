"""Compiles src/kernels.cu to src/kernels.ptx with NVRTC (the PyPI package `nvidia-cuda-nvrtc`; no GPU needed).

The PTX is for compute capability 7.5, from which a driver makes code for every later device, and in the oldest language
that knows it, which every driver of CUDA 10 or later reads.
"""

import ctypes
import hashlib
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent / "src"


def library():
    import nvidia

    for folder in nvidia.__path__:
        for path in pathlib.Path(folder).glob("*/lib/libnvrtc.so.*"):
            return ctypes.CDLL(str(path))
    sys.exit("libnvrtc is not installed: pip install nvidia-cuda-nvrtc")


def compile(source):
    nvrtc = library()
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None) == 0
    options = [b"--gpu-architecture=compute_75", b"--fmad=false"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if failed:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(log.value.decode())
    assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    ptx = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetPTX(program, ptx) == 0
    return re.sub(r"(?m)^\.version .*$", ".version 6.3", ptx.value.decode())


source = (HERE / "kernels.cu").read_bytes()
digest = hashlib.sha256(source).hexdigest()
(HERE / "kernels.ptx").write_text(f"// kernels.cu {digest}\n{compile(source)}")
