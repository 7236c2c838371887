//! A TensorRT that tells what it was asked for, compiled from NVIDIA's headers of a release.

use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use kiln_trt::Library;
use tempfile::TempDir;

use crate::support::references;

/// A release that the stub is compiled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    Enterprise,
    Rtx,
}

pub(super) const RELEASES: [Release; 2] = [Release::Enterprise, Release::Rtx];

/// Interfaces of which the stub implements some methods.
const INTERFACES: [&str; 23] = [
    "VHostMemory",
    "VDimensionExpr",
    "VExprBuilder",
    "VRuntime",
    "VRefitter",
    "VOptimizationProfile",
    "VCudaEngine",
    "VExecutionContext",
    "VEngineInspector",
    "VTensor",
    "VLayer",
    "VAttentionBoundaryLayer",
    "VAttention",
    "VNetworkDefinition",
    "VTimingCache",
    "VBuilderConfig",
    "VSerializationConfig",
    "VRuntimeConfig",
    "VRuntimeCache",
    "VBuilder",
    "IParser",
    "IParserError",
    "IPluginRegistry",
];

impl Release {
    fn headers(self) -> &'static str {
        match self {
            Release::Enterprise => "11.4",
            Release::Rtx => "rtx-1.7",
        }
    }

    fn file_names(self) -> [&'static str; 2] {
        match self {
            Release::Enterprise => ["libnvinfer.so", "libnvonnxparser.so"],
            Release::Rtx => ["libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"],
        }
    }

    /// Name and version, as the library tells them.
    pub(super) fn name(self) -> &'static str {
        match self {
            Release::Enterprise => "TensorRT 11.4.0",
            Release::Rtx => "TensorRT-RTX 1.7.1",
        }
    }

    /// The compiled stub; each test loads a copy of its own.
    fn compiled(self) -> &'static Path {
        static ENTERPRISE: LazyLock<Compiled> = LazyLock::new(|| Compiled::new(Release::Enterprise));
        static RTX: LazyLock<Compiled> = LazyLock::new(|| Compiled::new(Release::Rtx));
        match self {
            Release::Enterprise => &ENTERPRISE.file,
            Release::Rtx => &RTX.file,
        }
    }
}

struct Compiled {
    file: PathBuf,
    _folder: TempDir,
}

impl Compiled {
    fn new(release: Release) -> Compiled {
        let folder = tempfile::tempdir().unwrap();
        let sources = references().with_file_name("tensorrt");
        let headers = sources.join("headers").join(release.headers());
        fs::write(folder.path().join("defaults.h"), defaults(&headers)).unwrap();
        let file = folder.path().join(release.file_names()[0]);
        let stub = sources.join("stub");
        let include = |path: &Path| format!("-I{}", path.display());
        compile(&[
            &include(&headers),
            &include(&stub),
            &include(folder.path()),
            "-o",
            &file.display().to_string(),
            &stub.join("stub.cpp").display().to_string(),
        ]);
        Compiled { file, _folder: folder }
    }
}

/// Compiles a shared library with the C++ compiler of the machine.
pub(crate) fn compile(arguments: &[&str]) {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or("c++".into()));
    command.args(["-std=c++17", "-shared", "-fPIC", "-O0", "-w", "-fno-gnu-unique"]).args(arguments);
    let output = command.output().unwrap_or_else(|e| {
        panic!("these tests compile a stand-in for TensorRT and need a C++ compiler as `c++` (or CXX): {e}")
    });
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// For each interface a class whose pure methods are unexpected, as NVIDIA's headers declare them.
fn defaults(headers: &Path) -> String {
    let names = ["NvInferImpl.h", "NvInferRuntimeCommon.h", "NvOnnxParser.h"];
    let text: String = names.iter().map(|name| fs::read_to_string(headers.join(name)).unwrap()).collect();
    let text = without_comments(&text);
    let declared = INTERFACES.iter().filter(|interface| text.contains(&format!("class {interface}")));
    let classes = declared.map(|interface| {
        let methods: String =
            pure_methods(&text, interface).map(|method| default(interface, &method)).collect();
        let scope = if interface.starts_with('V') { "apiv::" } else { "" };
        format!("struct Default{interface} : {scope}{interface}\n{{\n{methods}}};\n")
    });
    format!("#pragma once\nnamespace stub\n{{\n{}}} // namespace stub\n", classes.collect::<String>())
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut parts = text.split("/*");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| text + part.split_once("*/").unwrap().1)
}

/// Declarations of a class's pure methods, without `virtual` and `= 0`.
fn pure_methods<'t>(text: &'t str, class: &str) -> impl Iterator<Item = String> + 't {
    let head = format!("class {class}");
    let mut after = text.split(&head).skip(1);
    let body = after.find(|rest| rest.trim_start().starts_with([':', '{'])).expect("the class is declared");
    let body = body.split("\n};").next().unwrap();
    body.split(';').filter_map(|declaration| {
        let declaration = declaration.split_whitespace().collect::<Vec<_>>().join(" ");
        let declaration = declaration.strip_suffix("= 0")?.split_once("virtual ")?.1.trim().to_owned();
        (!declaration.starts_with('~')).then_some(declaration)
    })
}

fn default(interface: &str, declaration: &str) -> String {
    let head = declaration.split('(').next().unwrap();
    let at = head.rfind(|c: char| !c.is_alphanumeric() && c != '_').unwrap() + 1;
    let (result, method) = (head[..at].trim(), &head[at..]);
    let answer = match result {
        "void" => "return;",
        result if result.ends_with('&') => "std::abort();",
        _ => "return {};",
    };
    format!("    {declaration} override {{ unexpected(\"{interface}::{method}\"); {answer} }}\n")
}

/// The stub, loaded by the crate and by the test.
pub(super) struct Stub {
    pub(super) library: Arc<Library>,
    own: libloading::Library,
    folder: TempDir,
    _others: Box<dyn Any>,
}

/// Held while a stub is loaded, whose name the loader may know then.
static LOADED: RwLock<()> = RwLock::new(());

impl Stub {
    pub(super) fn new(release: Release) -> Stub {
        let others = LOADED.read().unwrap_or_else(PoisonError::into_inner);
        Stub::beside(release, others)
    }

    /// The stub, while there is no other.
    pub(super) fn alone(release: Release) -> Stub {
        let others = LOADED.write().unwrap_or_else(PoisonError::into_inner);
        Stub::beside(release, others)
    }

    fn beside(release: Release, others: impl Any) -> Stub {
        let folder = tempfile::tempdir().unwrap();
        let [core, parser] = release.file_names().map(|name| folder.path().join(name));
        fs::copy(release.compiled(), &core).unwrap();
        std::os::unix::fs::symlink(&core, parser).unwrap();
        let library = Library::open(&core).unwrap();
        // SAFETY: the stub has no initialisers with preconditions.
        let own = unsafe { libloading::Library::new(&core) }.unwrap();
        Stub { library, own, folder, _others: Box::new(others) }
    }

    /// Path of a model of that name; the stub reads no models.
    pub(super) fn model(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the library was asked for since this was last asked.
    pub(super) fn log(&self) -> String {
        // SAFETY: `char const* stubLog()` of stub.cpp, whose text lives until the next call, on this thread.
        unsafe {
            let log = self.own.get::<unsafe extern "C" fn() -> *const c_char>("stubLog").unwrap();
            CStr::from_ptr(log()).to_str().unwrap().to_owned()
        }
    }

    /// Logs a message; a builder or runtime was made before.
    pub(super) fn say(&self, severity: i32, message: &str) {
        let message = CString::new(message).unwrap();
        // SAFETY: `void stubSay(int32_t, char const*)` of stub.cpp.
        unsafe {
            let say = self.own.get::<unsafe extern "C" fn(i32, *const c_char)>("stubSay").unwrap();
            say(severity, message.as_ptr());
        }
    }

    /// Lets the next call of a method fail.
    pub(super) fn fail(&self, method: &str) {
        let method = CString::new(method).unwrap();
        // SAFETY: `void stubFail(char const*)` of stub.cpp, which copies the text.
        unsafe {
            let fail = self.own.get::<unsafe extern "C" fn(*const c_char)>("stubFail").unwrap();
            fail(method.as_ptr());
        }
    }
}
