//! Loading TensorRT's shared libraries.

use std::ffi::c_void;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::TrtError;
use crate::alias;
use crate::error::TrtErrorKind;
use crate::logger::{self, Logger};
use crate::sys::Tables;

/// Which of NVIDIA's two products a library is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// TensorRT-RTX: engines are built without the device and finished on it.
    Rtx,
    /// TensorRT: engines are built on the device that runs them.
    Enterprise,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Product::Rtx => "TensorRT-RTX",
            Product::Enterprise => "TensorRT",
        })
    }
}

/// TensorRT and its ONNX parser, loaded.
#[derive(Debug)]
pub struct Library {
    path: PathBuf,
    core: libloading::Library,
    parser: Option<libloading::Library>,
    product: Product,
    version: [u32; 3],
    tables: Arc<Tables>,
    logger: &'static Logger,
    /// The core under the name that the parser asks the loader for.
    by_name: OnceLock<libloading::Library>,
}

impl Library {
    /// Loads `libtensorrt_rtx.so*` or `libnvinfer.so*`, and the ONNX parser that lies beside it where there is one.
    ///
    /// Errors are of kind [`TrtErrorKind::Library`]: a file that cannot be loaded, or a release that is not known.
    pub fn open(path: &Path) -> Result<Arc<Library>, TrtError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let product = if name.contains("tensorrt_rtx") { Product::Rtx } else { Product::Enterprise };
        let core = load(path)?;
        let number = |symbol: &str| {
            // SAFETY: `int32_t getInferLib*Version()` of NvInferRuntime.h.
            let read = unsafe { core.get::<unsafe extern "C" fn() -> i32>(symbol) };
            let read = read.map_err(|e| refuse(path, format!("is not TensorRT: {e}")))?;
            // SAFETY: as above.
            u32::try_from(unsafe { read() }).map_err(|_| refuse(path, format!("{symbol} is negative")))
        };
        let version = [
            number("getInferLibMajorVersion")?,
            number("getInferLibMinorVersion")?,
            number("getInferLibPatchVersion")?,
        ];
        let tables = Arc::new(Tables::find(product, version).map_err(|e| refuse(path, e.to_string()))?);
        let (stem, parser_stem) = match product {
            Product::Rtx => ("tensorrt_rtx", "tensorrt_onnxparser_rtx"),
            Product::Enterprise => ("nvinfer", "nvonnxparser"),
        };
        let parser = path.with_file_name(name.replacen(stem, parser_stem, 1));
        let parser = if parser.is_file() { Some(load(&parser)?) } else { None };
        let logger = Logger::leaked(&tables)?;
        let by_name = OnceLock::new();
        Ok(Arc::new(Library { path: path.into(), core, parser, product, version, tables, logger, by_name }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which product it is.
    pub fn product(&self) -> Product {
        self.product
    }

    /// Major, minor and patch number.
    pub fn version(&self) -> [u32; 3] {
        self.version
    }

    /// Product and version, as in `TensorRT-RTX 1.7.1`.
    pub fn release(&self) -> &str {
        &self.tables.release
    }

    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    pub(crate) fn logger(&self) -> &'static Logger {
        self.logger
    }

    /// An error with the reasons that TensorRT has logged since the last one, and the node that the first of them names.
    pub(crate) fn failure(&self, kind: TrtErrorKind, what: &str) -> TrtError {
        self.logged_failure(kind, what).unwrap_or_else(|| TrtError::new(kind, what))
    }

    /// The same, of a method that returns nothing: a failure where TensorRT has logged an error.
    pub(crate) fn logged_failure(&self, kind: TrtErrorKind, what: &str) -> Option<TrtError> {
        let reasons = self.logger.take_errors();
        let node = reasons.iter().find_map(|reason| logger::node(reason)).unwrap_or_default();
        let error = || TrtError::new(kind, format!("{what}: {}", reasons.join("; "))).in_node(node);
        (!reasons.is_empty()).then(error)
    }

    /// Calls a factory `void* NAME(void* logger, int32_t version)`.
    pub(crate) fn create(&self, symbol: &str) -> Result<*mut c_void, TrtError> {
        type Factory = unsafe extern "C" fn(*mut c_void, i32) -> *mut c_void;
        // SAFETY: NvInfer.h and NvInferRuntime.h declare the factories so.
        let factory = unsafe { self.core.get::<Factory>(symbol) };
        let factory = factory.map_err(|e| refuse(&self.path, e.to_string()))?;
        self.logger.take_errors();
        // SAFETY: the logger is never freed; the version is the library's own.
        Ok(unsafe { factory(self.logger.as_ptr(), self.number()) })
    }

    /// Lets the parser add plugins to networks. That of TensorRT-RTX asks the loader for `libtensorrt_rtx.so` then, and
    /// ends the process where the loader finds none.
    pub(crate) fn be_found_by_parser(&self) -> Result<(), TrtError> {
        if self.product == Product::Rtx && self.by_name.get().is_none() {
            let library = alias::load(&self.path, "libtensorrt_rtx.so")?;
            // Another thread may have been faster; its handle is as good.
            let _ = self.by_name.set(library);
        }
        Ok(())
    }

    /// Calls a function `void* NAME()`.
    pub(crate) fn call(&self, symbol: &str) -> Result<*mut c_void, TrtError> {
        // SAFETY: NvInferRuntime.h declares what this is called for so.
        let function = unsafe { self.core.get::<unsafe extern "C" fn() -> *mut c_void>(symbol) };
        let function = function.map_err(|e| refuse(&self.path, e.to_string()))?;
        self.logger.take_errors();
        // SAFETY: as above.
        Ok(unsafe { function() })
    }

    /// Calls a factory `void* NAME(void* object, void* logger, int32_t version)`.
    pub(crate) fn create_for(&self, symbol: &str, object: *mut c_void) -> Result<*mut c_void, TrtError> {
        type Factory = unsafe extern "C" fn(*mut c_void, *mut c_void, i32) -> *mut c_void;
        let is_parser = symbol.contains("OnnxParser");
        let (library, version) = match (&self.parser, is_parser) {
            (Some(parser), true) => {
                // SAFETY: `int getNvOnnxParserVersion()` of NvOnnxParser.h.
                let version = unsafe { parser.get::<unsafe extern "C" fn() -> i32>("getNvOnnxParserVersion") };
                let version = version.map_err(|e| refuse(&self.path, e.to_string()))?;
                // SAFETY: as above.
                (parser, unsafe { version() })
            }
            (None, true) => return Err(refuse(&self.path, "has no ONNX parser beside it".into())),
            (_, false) => (&self.core, self.number()),
        };
        // SAFETY: NvInferRuntime.h and NvOnnxParser.h declare the factories so.
        let factory = unsafe { library.get::<Factory>(symbol) };
        let factory = factory.map_err(|e| refuse(&self.path, e.to_string()))?;
        self.logger.take_errors();
        // SAFETY: the caller gives a live object of the factory's kind; the logger is never freed.
        Ok(unsafe { factory(object, self.logger.as_ptr(), version) })
    }

    fn number(&self) -> i32 {
        let [major, minor, patch] = self.version;
        (major * 10_000 + minor * 100 + patch) as i32
    }
}

fn load(path: &Path) -> Result<libloading::Library, TrtError> {
    // SAFETY: the initialisers of NVIDIA's libraries have no preconditions.
    unsafe { libloading::Library::new(path) }.map_err(|e| refuse(path, e.to_string()))
}

fn refuse(path: &Path, reason: String) -> TrtError {
    TrtError::new(TrtErrorKind::Library, format!("{}: {reason}", path.display()))
}
