//! Environment variables. A variable that is set but empty counts as unset.

/// Folder for everything that kiln downloads; the platform's cache folder by default.
pub const KILN_CACHE_DIR: &str = "KILN_CACHE_DIR";

/// Which of kiln's kernels compute on the processor: `off`, `auto`, or instructions that it has.
pub const KILN_KERNELS: &str = "KILN_KERNELS";

/// An existing folder for ONNX Runtime's profiles of sessions on the host.
pub const KILN_PROFILES: &str = "KILN_PROFILES";

/// ONNX Runtime's shared library, or the folder that holds it.
pub const KILN_ONNXRUNTIME: &str = "KILN_ONNXRUNTIME";

/// ONNX Runtime's shared library with its CUDA provider beside it, or the folder that holds them.
pub const KILN_ONNXRUNTIME_CUDA: &str = "KILN_ONNXRUNTIME_CUDA";

/// TensorRT's shared library, `libnvinfer`, or the folder that holds it.
pub const KILN_TENSORRT: &str = "KILN_TENSORRT";

/// TensorRT-RTX's shared library, or the folder that holds it.
pub const KILN_TENSORRT_RTX: &str = "KILN_TENSORRT_RTX";

/// The user's folder, in which the platform's cache folder lies on Linux and macOS.
pub const HOME: &str = "HOME";

/// The cache folder on Linux, if it is not `~/.cache`.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";

/// The cache folder on Windows.
pub const LOCALAPPDATA: &str = "LOCALAPPDATA";

/// Folders in which Python and pip are looked for.
pub const PATH: &str = "PATH";

/// A variable that a user may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it says, in one line.
    pub meaning: &'static str,
}

/// The variables of kiln's own that this crate and the runtime read.
pub const VARIABLES: [Variable; 7] = [
    Variable {
        name: KILN_CACHE_DIR,
        meaning: "folder for downloads (default: kiln in the platform's cache folder)",
    },
    Variable { name: KILN_ONNXRUNTIME, meaning: "ONNX Runtime's shared library, or the folder that holds it" },
    Variable { name: KILN_ONNXRUNTIME_CUDA, meaning: "the same with its CUDA provider beside it" },
    Variable { name: KILN_TENSORRT_RTX, meaning: "TensorRT-RTX's shared library, or the folder that holds it" },
    Variable {
        name: KILN_TENSORRT,
        meaning: "TensorRT's shared library libnvinfer, or the folder that holds it",
    },
    Variable {
        name: KILN_KERNELS,
        meaning: "kiln's kernels on the processor: off, or portable, avx2, avx512, avx512-vnni, avx512-bf16, amx, neon (default: auto, the fastest)",
    },
    Variable {
        name: KILN_PROFILES,
        meaning: "folder for ONNX Runtime's profile of each session on the processor",
    },
];

/// Every variable that this crate reads.
pub(crate) const ALL: [&str; 9] = [
    KILN_CACHE_DIR,
    KILN_ONNXRUNTIME,
    KILN_ONNXRUNTIME_CUDA,
    KILN_TENSORRT,
    KILN_TENSORRT_RTX,
    HOME,
    XDG_CACHE_HOME,
    LOCALAPPDATA,
    PATH,
];
