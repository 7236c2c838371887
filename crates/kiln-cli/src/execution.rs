//! What runs the engines.

use std::sync::Arc;

use clap::ValueEnum;
use kiln_engine::{Backend, OnnxRuntime, Rten};
use kiln_native::{Found, Library, locate};

use crate::args::{BackendChoice, ExecutionArgs};
use crate::failure::Failure;
use crate::{output, runtime};

/// Most threads that an operator may be spread over.
const MAX_THREADS: usize = 1024;

/// Checks all that can be checked without opening a library.
pub(crate) fn check(args: ExecutionArgs) -> Result<(), Failure> {
    match args.threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
        Some(threads) => {
            Err(Failure::usage(format!("threads: {threads} is not a number from 1 to {MAX_THREADS}")))
        }
        None => Ok(()),
    }
}

/// The same for another kiln's command line.
pub(crate) fn arguments(args: ExecutionArgs) -> Vec<String> {
    let backend = args.backend.to_possible_value().map(|value| value.get_name().to_owned());
    let threads = args.threads.map(|n| n.to_string());
    let named = [("--backend", backend), ("--threads", threads), ("--device", Some(args.device.to_string()))];
    named.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?])).flatten().collect()
}

/// ONNX Runtime, fetched if need be; where it can not be had, the built-in backend takes over and says so.
pub(crate) fn backend(args: ExecutionArgs) -> Result<Arc<dyn Backend>, Failure> {
    let ExecutionArgs { backend: choice, threads, .. } = args;
    check(args)?;
    if choice == BackendChoice::Rten {
        return Ok(Arc::new(Rten::new(threads)));
    }
    if let Some(runtime) = OnnxRuntime::in_use().filter(|_| threads.is_none()) {
        return Ok(Arc::new(runtime));
    }
    let named = locate(Library::OnnxRuntimeCpu)?;
    let may_fall_back = choice == BackendChoice::Auto && !named.as_ref().is_some_and(Found::is_explicit);
    let found = named.map_or_else(|| runtime::fetch(Library::OnnxRuntimeCpu), Ok);
    match found.and_then(|found| Ok(OnnxRuntime::open(&found.path, threads)?)) {
        Ok(backend) => Ok(Arc::new(backend)),
        Err(failure) if may_fall_back => {
            output::say(&format!("using the built-in backend rten: {}", failure.message()));
            Ok(Arc::new(Rten::new(threads)))
        }
        Err(failure) => Err(failure),
    }
}
