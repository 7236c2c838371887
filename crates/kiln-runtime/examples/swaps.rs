//! Pictures on a GPU with one component loaded at a time, and what stays on it after each.
//!
//!     cargo run --release --example swaps -- BUNDLE 10
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::ops::ControlFlow;

use kiln_runtime::{Backends, Bundle, Error, Libraries, MemoryOptions, Offload, Pipeline, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, n_pictures] = arguments.as_slice() else {
        return Err("usage: swaps BUNDLE PICTURES".into());
    };
    let bundle = Bundle::open(bundle.as_ref())?;
    let backends = Backends::new(Libraries::new().from_environment());
    let backend = backends.open(bundle.manifest().target)?.backend;
    let mut pipeline = Pipeline::new(bundle, backend.clone())?;
    pipeline.set_memory(MemoryOptions { offload: Offload::Model, ..MemoryOptions::default() })?;
    let free = || backend.device().map_or(Ok(0), |device| device.memory().map(|memory| memory.free_bytes));
    println!("before: {} bytes are free", free()?);
    for i in 1..=n_pictures.parse()? {
        let request = Request { seeds: vec![i], steps: Some(2), ..Request::new("a red circle") };
        let drawn: Result<_, Error> = pipeline.generate(&request, &mut |_| ControlFlow::Continue(()));
        drawn?;
        println!("after picture {i}: {} bytes are free", free()?);
    }
    drop(pipeline);
    println!("after all: {} bytes are free", free()?);
    Ok(())
}
