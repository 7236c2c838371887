//! Changes a picture, with a LoRA if there is one: `cargo run --release --example repaint -- BUNDLE PROMPT IN OUT.png [LORA]`.

use std::error::Error;
use std::sync::Arc;

use kiln_runtime::image::RgbImage;
use kiln_runtime::{Bundle, Init, Libraries, LoraFile, Pipeline, Request};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, prompt, picture, out, lora @ ..] = arguments.as_slice() else {
        return Err("usage: repaint BUNDLE PROMPT IN OUT.png [LORA]".into());
    };
    let libraries = Libraries::new().from_environment();
    let mut pipeline = Pipeline::builder(Bundle::open(bundle)?).libraries(libraries).build()?;
    if let [lora] = lora {
        pipeline.set_loras(&[(Arc::new(LoraFile::open(lora)?), 0.8)])?;
    }
    let init = Init::new(RgbImage::open(picture)?).strength(0.6);
    let output = pipeline.generate(&Request::new(prompt).init(init))?;
    output.images[0].save_png(out, &[])?;
    Ok(())
}
