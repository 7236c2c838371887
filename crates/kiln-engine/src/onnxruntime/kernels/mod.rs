//! kiln's own kernels within ONNX Runtime's graphs.
//!
//! A model file stays standard ONNX, which every runtime reads. When it is loaded, operators that a kernel computes faster
//! than ONNX Runtime's own are exchanged for operators of kiln's domain; they run on ONNX Runtime's threads and read
//! weights where they lie.

mod conv;
mod memory;
mod rewrite;
mod wire;

use std::env;
use std::path::Path;
use std::sync::Arc;

use kiln_kernels::Isa;
use ort::operator::{ComputeContext, OperatorDomain};
use ort::session::builder::SessionBuilder;

use memory::Scratch;

/// The domain of kiln's operators.
const DOMAIN: &str = "kiln";

/// Largest model file that is read as a whole: larger ones hold their weights, which kiln's do not.
const MAX_MODEL: u64 = 64 << 20;

/// Which instructions kernels use; `off` for ONNX Runtime's operators alone.
const VARIABLE: &str = "KILN_KERNELS";

/// The kernels of a process, and the room that they compute in.
#[derive(Clone, Debug)]
pub(super) struct Kernels {
    isa: Option<Isa>,
    scratch: Arc<Scratch>,
}

impl Kernels {
    /// Those of this processor, or what the variable says.
    pub(super) fn of_environment() -> Result<Kernels, String> {
        let named = env::var(VARIABLE).unwrap_or_default();
        let isa = match named.as_str() {
            "" => Some(Isa::best()).filter(|isa| *isa != Isa::Portable),
            "off" => None,
            name => {
                let isa: Option<Isa> = name.parse().ok();
                let isa = isa.filter(|isa| isa.is_available());
                Some(isa.ok_or_else(|| {
                    format!("{VARIABLE}: '{}' is not one of {}", name.escape_debug(), known())
                })?)
            }
        };
        Ok(Kernels { isa, scratch: Arc::default() })
    }

    /// The model with kernels of kiln in place of operators that they compute, if there are any.
    pub(super) fn rewritten(&self, model: &Path) -> Option<Vec<u8>> {
        self.isa?;
        if model.metadata().ok()?.len() > MAX_MODEL {
            return None;
        }
        rewrite::model(&std::fs::read(model).ok()?)
    }

    /// A session that knows the kernels, of so many threads, for a model whose weights lie in `folder`.
    pub(super) fn register(
        &self,
        builder: SessionBuilder,
        folder: &Path,
        threads: usize,
    ) -> ort::Result<SessionBuilder> {
        let work = Work { isa: self.isa.unwrap_or(Isa::Portable), threads, scratch: self.scratch.clone() };
        let domain = OperatorDomain::new(DOMAIN)?.add(conv::Conv::new(work))?;
        let builder = builder.with_operators(domain)?;
        let folder = folder.to_string_lossy();
        Ok(builder.with_config_entry("session.model_external_initializers_file_folder_path", &*folder)?)
    }
}

/// What the variable may say.
fn known() -> String {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name);
    ["off"].into_iter().chain(isas).collect::<Vec<_>>().join(", ")
}

/// How the kernels of a session work.
#[derive(Clone, Debug)]
struct Work {
    isa: Isa,
    threads: usize,
    scratch: Arc<Scratch>,
}

/// ONNX Runtime's threads.
struct Pool<'a> {
    context: &'a ComputeContext,
    threads: usize,
}

impl kiln_kernels::Parallel for Pool<'_> {
    fn lanes(&self) -> usize {
        self.threads
    }

    fn run(&self, n: usize, task: &(dyn Fn() + Sync)) {
        // What is not called here the caller does itself.
        let _ = self.context.par_for(n, n, |_| task());
    }
}

fn failed(error: impl std::fmt::Display) -> ort::Error {
    ort::Error::new(error.to_string())
}
