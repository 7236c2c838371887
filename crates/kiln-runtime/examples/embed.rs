//! Draws a picture from a bundle: `cargo run --release --example embed -- BUNDLE PROMPT OUT.png`.

use std::env::args;
use std::error::Error;
use std::ops::ControlFlow;

use kiln_runtime::{Backends, Bundle, Event, Libraries, Pipeline, Request};

#[allow(clippy::print_stderr)]
fn main() -> Result<(), Box<dyn Error>> {
    let [bundle, prompt, out] =
        args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "BUNDLE PROMPT OUT.png")?;
    let bundle = Bundle::open(bundle.as_ref())?;
    let backends = Backends::new(Libraries::new().from_environment());
    let opened = backends.open(bundle.manifest().target)?;
    opened.notices.iter().for_each(|notice| eprintln!("{notice}"));
    let mut pipeline = Pipeline::new(bundle, opened.backend)?;
    let request = Request { seeds: vec![1], steps: Some(20), ..Request::new(prompt) };
    let output = pipeline.generate(&request, &mut |event| {
        if let Event::Step { step, steps, .. } = event {
            eprintln!("step {step} of {steps}");
        }
        ControlFlow::Continue(())
    })?;
    output.images[0].save_png(out.as_ref(), &[])?;
    Ok(())
}
