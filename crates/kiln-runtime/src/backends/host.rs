//! Backends on the processor.

use std::sync::Arc;
use std::thread;

use kiln_engine::Backend;

use super::{Libraries, Notice, Runner};
use crate::Error;

type Backed = (Arc<dyn Backend>, Option<Notice>);

/// The backend, and what is not as it was asked for.
pub(super) fn open(
    runner: Runner,
    threads: Option<usize>,
    libraries: &Libraries,
) -> Result<(Arc<dyn Backend>, Vec<Notice>), Error> {
    let cores = thread::available_parallelism().map_or(usize::MAX, usize::from);
    let fewer = threads.filter(|&asked| asked > cores).map(|asked| Notice::Threads { asked, cores });
    let (backend, instead) = backed(runner, threads.map(|threads| threads.min(cores)), libraries)?;
    Ok((backend, fewer.into_iter().chain(instead).collect()))
}

fn backed(runner: Runner, threads: Option<usize>, libraries: &Libraries) -> Result<Backed, Error> {
    match runner {
        Runner::Rten => built_in(threads, None),
        Runner::OnnxRuntime => Ok((onnxruntime(threads, libraries, Err)?.0, None)),
        Runner::Auto => onnxruntime(threads, libraries, |error| {
            let reason = error.to_string();
            built_in(threads, Some(Notice::BuiltIn { reason })).map_err(|_| error)
        }),
    }
}

/// ONNX Runtime, or what `instead` makes of a failure that does not concern a library that somebody named.
#[cfg(feature = "onnxruntime")]
fn onnxruntime(
    threads: Option<usize>,
    libraries: &Libraries,
    instead: impl FnOnce(Error) -> Result<Backed, Error>,
) -> Result<Backed, Error> {
    use kiln_engine::{HostOptions, OnnxRuntime};
    use kiln_native::Library;

    // A process has one, and the one for GPUs has the processor's provider too.
    if let Some(runtime) = OnnxRuntime::in_use().filter(|_| threads.is_none()) {
        return Ok((Arc::new(runtime), None));
    }
    let located = libraries.locate(Library::OnnxRuntimeCpu)?;
    let options = HostOptions { threads, kernels: libraries.kernels()?, profiles: libraries.profiles()? };
    let is_named = located.as_ref().is_some_and(|located| located.is_named);
    let path = located.map_or_else(|| libraries.fetch(Library::OnnxRuntimeCpu), |located| Ok(located.path));
    match path.and_then(|path| Ok(OnnxRuntime::open(&path, options)?)) {
        Ok(runtime) => Ok((Arc::new(runtime), None)),
        Err(error) if is_named => Err(error),
        Err(error) => instead(error),
    }
}

#[cfg(not(feature = "onnxruntime"))]
fn onnxruntime(
    _threads: Option<usize>,
    _libraries: &Libraries,
    instead: impl FnOnce(Error) -> Result<Backed, Error>,
) -> Result<Backed, Error> {
    instead(Error::Feature { what: "ONNX Runtime", feature: "onnxruntime" })
}

#[cfg(feature = "rten")]
fn built_in(threads: Option<usize>, notice: Option<Notice>) -> Result<Backed, Error> {
    Ok((Arc::new(kiln_engine::Rten::new(threads)), notice))
}

#[cfg(not(feature = "rten"))]
fn built_in(_threads: Option<usize>, _notice: Option<Notice>) -> Result<Backed, Error> {
    Err(Error::Feature { what: "the built-in backend", feature: "rten" })
}
