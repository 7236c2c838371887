//! Draws a picture from a bundle: `cargo run --release --example embed -- BUNDLE PROMPT OUT.png`.

use std::env::args;
use std::error::Error;

use kiln_runtime::{Backends, Bundle, Libraries, Pipeline, Request};

#[expect(clippy::print_stderr, reason = "an example talks")]
fn main() -> Result<(), Box<dyn Error>> {
    let [bundle, prompt, out] =
        args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "BUNDLE PROMPT OUT.png")?;
    let bundle = Bundle::open(bundle)?;
    let backends = Backends::new(Libraries::new().from_environment());
    let opened = backends.open(bundle.manifest().target)?;
    opened.notices.iter().for_each(|notice| eprintln!("{notice}"));
    let mut pipeline = Pipeline::builder(bundle).backend(opened.backend).build()?;
    let output = pipeline.generate(&Request::new(prompt).seed(1).steps(20))?;
    output.images[0].save_png(out.as_ref(), &[])?;
    Ok(())
}
