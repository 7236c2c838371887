//! How far a bundle of reduced precision is from the same networks in f32.

use std::sync::Arc;

use kiln_bundle::{Accuracy, Bundle, ComponentName, PictureAccuracy, Precision};
use kiln_runtime::image::RgbImage;
use kiln_runtime::{Backend, Pipeline, Request};

use crate::backends;
use crate::bench::PROMPT;
use crate::failure::Failure;
use crate::models::{self, seal_key};
use crate::progress::Bar;

/// Steps of the picture that is drawn.
const STEPS: usize = 10;

/// How many times the drift that was measured another processor may have: what rounds alike adds in another order.
const TOLERANCE: f64 = 2.0;
/// What is tolerated whatever was measured.
const LEAST: f64 = 1e-3;

/// Whether this processor computes what the bundle asks for: what it leaves more exact tells nothing of others.
pub(crate) fn is_measured_here(bundle: &Bundle) -> Result<bool, Failure> {
    let mut components = bundle.manifest().components.values();
    let has_int8 = components.any(|component| component.precision() == Some(Precision::Int8));
    Ok(!has_int8 || backends::libraries().fast_precisions()?.contains(&Precision::Int8))
}

/// Measures how far a bundle is from an exact one, and records it.
pub(crate) fn record(bundle: &mut Bundle, exact: Bundle, backend: Arc<dyn Backend>) -> Result<(), Failure> {
    let bar = Bar::spinner("comparing with f32");
    let mut own = models::pipeline(bundle.clone(), backend.clone())?;
    let mut exact = models::pipeline(exact, backend.clone())?;
    let components = own.compare_components(&mut exact)?.into_iter().collect();
    bar.message("drawing a picture in both".into());
    let accuracy = Accuracy {
        backend: format!("{} {}", backend.name(), backend.version()),
        components,
        picture: picture(&mut own, &mut exact)?,
    };
    Ok(bundle.set_accuracy(accuracy, &seal_key()?)?)
}

/// A picture of the model's own size; none where there is nothing to compare.
fn picture(own: &mut Pipeline, exact: &mut Pipeline) -> Result<Option<PictureAccuracy>, Failure> {
    let request = Request::new(PROMPT).seed(0).steps(STEPS);
    let expected = match exact.generate(&request) {
        Err(error) if error.is_overflow() => return Ok(None),
        result => result?,
    };
    let expected = &expected.images[0];
    if expected.is_flat(RgbImage::FLAT) {
        return Ok(None);
    }
    let found = own.generate(&request)?;
    let psnr = found.images[0].compare(expected).map_err(kiln_runtime::Error::from)?.psnr;
    Ok(Some(PictureAccuracy { psnr, size: expected.size(), steps: STEPS as u32 }))
}

/// What is said of it.
pub(crate) fn describe(accuracy: &Accuracy) -> String {
    let mut parts: Vec<String> =
        accuracy.components.iter().map(|(name, drift)| format!("{name} {drift:.1e}")).collect();
    if let Some(PictureAccuracy { psnr, size, steps }) = accuracy.picture {
        let psnr = psnr.map_or_else(|| "equal".into(), |psnr| format!("at {psnr:.1} dB"));
        parts.push(format!("a picture {psnr} ({}x{}, {steps} steps)", size.width, size.height));
    }
    format!("beside f32: {}, by {}", parts.join(", "), accuracy.backend)
}

/// The most that a component may be off another bundle's, if that is of f32: what was recorded, and as much again.
pub(crate) fn bound(bundle: &Bundle, other: &Bundle, name: ComponentName) -> Option<f64> {
    let is_exact = other.manifest().components.get(&name)?.precision == "f32";
    let drift = bundle.manifest().accuracy.as_ref().filter(|_| is_exact)?.components.get(&name)?;
    Some((TOLERANCE * drift).max(LEAST))
}
