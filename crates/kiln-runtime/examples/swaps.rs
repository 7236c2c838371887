//! Pictures on a GPU with one component loaded at a time, and what stays on it after each.
//!
//!     cargo run --release --example swaps -- BUNDLE 10
#![expect(clippy::print_stdout, reason = "an example talks")]

use kiln_runtime::{Backends, Bundle, Libraries, MemoryOptions, Offload, Pipeline, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, n_pictures] = arguments.as_slice() else {
        return Err("usage: swaps BUNDLE PICTURES".into());
    };
    let bundle = Bundle::open(bundle)?;
    let backends = Backends::new(Libraries::new().from_environment());
    let backend = backends.open(bundle.manifest().target)?.backend;
    let memory = MemoryOptions::new().offload(Offload::Model);
    let mut pipeline = Pipeline::builder(bundle).backend(backend.clone()).memory(memory).build()?;
    let free = || backend.device().map_or(Ok(0), |device| device.memory().map(|memory| memory.free_bytes));
    println!("before: {} bytes are free", free()?);
    for i in 1..=n_pictures.parse()? {
        pipeline.generate(&Request::new("a red circle").seed(i).steps(2))?;
        println!("after picture {i}: {} bytes are free", free()?);
    }
    drop(pipeline);
    println!("after all: {} bytes are free", free()?);
    Ok(())
}
