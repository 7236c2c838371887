//! Draws a picture from a bundle: `cargo run --release --example embed -- BUNDLE PROMPT OUT.png`.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::error::Error;

use kiln_runtime::{Bundle, Libraries, Pipeline, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, prompt, out] = arguments.as_slice() else {
        return Err("usage: embed BUNDLE PROMPT OUT.png".into());
    };
    let libraries = Libraries::new().from_environment();
    let mut pipeline = Pipeline::builder(Bundle::open(bundle)?).libraries(libraries).build()?;
    pipeline.notices().iter().for_each(|notice| eprintln!("{notice}"));
    let output = pipeline.generate(&Request::new(prompt).seed(1).steps(20))?;
    output.images[0].save_png(out, &[])?;
    Ok(())
}
