//! Shows steps and previews, and stops when a key is pressed: `cargo run --release --example cancel -- BUNDLE PROMPT`.
#![expect(clippy::print_stderr, reason = "an example talks")]

use std::error::Error;
use std::ops::ControlFlow;

use kiln_runtime::{Bundle, CancelToken, ErrorKind, Event, Libraries, Pipeline, Request, Watch};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bundle, prompt] = arguments.as_slice() else { return Err("usage: cancel BUNDLE PROMPT".into()) };
    let libraries = Libraries::new().from_environment();
    let mut pipeline = Pipeline::builder(Bundle::open(bundle)?).libraries(libraries).build()?;
    let token = CancelToken::new();
    std::thread::spawn({
        let token = token.clone();
        move || std::io::stdin().read_line(&mut String::new()).map(|_| token.cancel())
    });
    let mut on_event = |event| {
        match event {
            Event::Step { step, steps, .. } => eprintln!("step {step} of {steps}; Enter stops"),
            Event::Preview { step, images } => {
                let saved = images[0].save_png(format!("preview-{step}.png"), &[]);
                saved.unwrap_or_else(|error| eprintln!("{error}"));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let watch = Watch::new().on_event(&mut on_event).cancel(&token).previews(10);
    match pipeline.generate_with(&Request::new(prompt), watch) {
        Ok(output) => Ok(output.images[0].save_png("picture.png", &[])?),
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            eprintln!("{error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
