//! Two models on two threads in one budget: `cargo run --release --example share -- BUNDLE BUNDLE PROMPT MIB`.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::error::Error;
use std::thread;

use kiln_runtime::{Backends, Bundle, Libraries, Pipeline, Pool, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, second, prompt, mib] = arguments.as_slice() else {
        return Err("usage: share BUNDLE BUNDLE PROMPT MIB".into());
    };
    let pool = Pool::with_budget(mib.parse::<u64>()?.saturating_mul(1 << 20));
    let backends = Backends::new(Libraries::new().from_environment());
    let open = |path: &String| -> Result<Pipeline, kiln_runtime::Error> {
        let bundle = Bundle::open(path)?;
        let opened = backends.open_for(&bundle)?;
        Pipeline::builder(bundle).backend(opened.backend).pool(&pool).build()
    };
    let mut pipelines = [open(first)?, open(second)?];
    let request = Request::new(prompt);
    let drawn: Vec<_> = thread::scope(|scope| {
        let threads = pipelines.each_mut().map(|pipeline| scope.spawn(|| pipeline.generate(&request)));
        threads.map(|thread| thread.join().expect("a thread that does not panic")).into()
    });
    for (i, output) in drawn.into_iter().enumerate() {
        output?.images[0].save_png(format!("model-{}.png", i + 1), &[])?;
    }
    println!("{} bytes of weights are loaded", pool.loaded_bytes());
    Ok(())
}
