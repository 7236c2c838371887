//! What the fuzz targets share: a folder to write to, checkpoints to spoil, and a limit on what is allocated.

pub mod adapter;
pub mod server;
mod spoilt;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Once};
use std::time::Duration;

pub use spoilt::Spoilt;

use kiln_bundle::{Bundle, BundleError};
use kiln_compile::{Architecture, synthesize};
use kiln_engine::{Backend, Engine, EngineError, LoadOptions, Port, Tensor, TensorView};
use kiln_graph::ElementType;
use kiln_runtime::Pipeline;
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::{Map, Value, json};

/// Most bytes that are allocated at once; touched or not, more is a number that nobody checked.
const MAX_ALLOCATION: usize = 512 << 20;

struct Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn check(size: usize) {
    assert!(size <= MAX_ALLOCATION, "an allocation of {size} bytes");
}

// SAFETY: all is handed on to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs an input; panics where that takes more than a second of the processor, however busy the machine is.
pub fn within_a_second(run: impl FnOnce()) {
    let used = || {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(tv_sec.unsigned_abs(), tv_nsec as u32)
    };
    let before = used();
    run();
    let seconds = (used() - before).as_secs_f64();
    assert!(seconds < 1.0, "{seconds} s");
}

/// A folder of this process in the folder for temporary files, which `run.sh` empties.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| tempfile::tempdir().expect("a folder").keep());
    &FOLDER
}

/// Writes a file of the process's folder.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, bytes).expect("a file");
    path
}

/// `=== name` and the lines of a file, again and again; names that are none of `known` are passed over.
pub fn files<'a>(text: &'a str, known: &'a [&'a str]) -> impl Iterator<Item = (&'a str, &'a str)> {
    let parts = text.split("=== ").filter_map(|part| part.split_once('\n'));
    parts.filter(|(name, _)| known.contains(name))
}

/// A header of lines such as `model.weight F32 320 4 3 3`, whose type may be missing, and the number of bytes of its
/// tensors. `> prefix` is put before the names that follow, and `# key value` is metadata.
pub fn safetensors(text: &str) -> Option<(Vec<u8>, u64)> {
    let (mut header, mut metadata, mut prefix, mut end) = (Map::new(), Map::new(), "", 0u64);
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("#", rest)) => {
                let (key, value) = rest.split_once(' ')?;
                metadata.insert(key.into(), value.into());
            }
            Some((">", rest)) => prefix = rest,
            _ => {
                let mut words = line.split_whitespace().peekable();
                let Some(name) = words.next() else { continue };
                let dtype = words.next_if(|word| word.parse::<u64>().is_err()).unwrap_or("F16");
                let shape: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
                let start = end;
                end =
                    shape.iter().try_fold(width(dtype), |n, side| n.checked_mul(*side))?.checked_add(start)?;
                let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
                header.insert(format!("{prefix}{name}"), entry);
            }
        }
    }
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), metadata.into());
    }
    let json = Value::from(header).to_string();
    Some(([&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat(), end))
}

/// Bytes of a number of a type.
fn width(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    }
}

/// A small checkpoint in diffusers' layout.
pub fn checkpoint() -> PathBuf {
    let path = folder().join("checkpoint");
    synthesize(Architecture::Tiny, ElementType::F16, 1, &path, &mut |_, _| {}).expect("a checkpoint")
}

/// A bundle with this manifest, whose digest is put behind it, beside files that it may list.
pub fn bundle_of(manifest: &str) -> Result<Bundle, BundleError> {
    static WRITTEN: Once = Once::new();
    let files: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("figures.json", include_bytes!("figures.json")),
        ("scheduler_config.json", include_bytes!("../../models/shapes/scheduler/scheduler_config.json")),
        ("tokenizer/vocab.json", include_bytes!("../../models/shapes/tokenizer/vocab.json")),
        ("tokenizer/merges.txt", include_bytes!("../../models/shapes/tokenizer/merges.txt")),
    ];
    WRITTEN.call_once(|| files.iter().for_each(|(name, bytes)| drop(file(&format!("bundle/{name}"), bytes))));
    let digest = blake3::hash(manifest.as_bytes()).to_hex();
    file("bundle/bundle.yaml", format!("{manifest}# blake3 {digest}\n").as_bytes());
    Bundle::open(folder().join("bundle"))
}

/// A pipeline that reads requests, and whose engines make nothing.
pub fn pipeline(bundle: Bundle) -> Result<Pipeline, kiln_runtime::Error> {
    Pipeline::builder(bundle).backend(Arc::new(Nothing)).build()
}

/// A pipeline with a small vocabulary.
pub fn small_pipeline() -> Pipeline {
    let bundle = bundle_of(include_str!("corpus/manifest/dynamic")).expect("a bundle");
    pipeline(bundle).expect("a pipeline")
}

/// A backend and each of its engines.
pub(crate) struct Nothing;

impl Backend for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn version(&self) -> &str {
        "0"
    }

    fn load(&self, _model: &Path, _options: &LoadOptions) -> Result<Box<dyn Engine>, EngineError> {
        Ok(Box::new(Nothing))
    }
}

impl Engine for Nothing {
    fn inputs(&self) -> &[Port] {
        &[]
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&mut self, _inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        Ok(Vec::new())
    }
}
