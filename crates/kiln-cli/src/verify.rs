use std::path::Path;
use std::sync::Arc;

use kiln_bundle::{Bundle, Component, Precision, SealKey};
use kiln_runtime::{Backend, Backends, Device, Error, Event, Place, Reference, Watch};
use serde_json::json;

use crate::accuracy;
use crate::args::VerifyArgs;
use crate::backends;
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::models::{self, seal_key};
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let mut bundle = open_bundle(&args.bundle)?;
    bundle.verify()?;
    let backends = args.execution.backends();
    let place = backends.place_for(&bundle)?;
    if let Some(other) = &args.against {
        return against(bundle, other, &backends, &place, args);
    }
    if args.record {
        record(&mut bundle, backends::open(&backends, &place)?, &seal_key()?)?;
        output::data(&bundle.root().display().to_string());
        return Ok(());
    }
    let Some(reference) = Reference::of(&bundle)? else {
        return Err(Failure::input(&args.bundle, "has no reference")
            .with_hint("kiln verify --record makes one, on a machine that is trusted"));
    };
    let max_drift = max_drift(&bundle, args);
    let mut pipeline = models::pipeline(bundle, backends::open(&backends, &place)?)?;
    let verification = watched(|watch| match pipeline.verify(&reference, watch) {
        Err(error) if error.is_overflow() => Err(Failure::differs(error.to_string())),
        result => Ok(result?),
    })?;
    let is_close = verification.psnr.is_none_or(|psnr| psnr >= args.min_psnr);
    let passes = verification.drift <= max_drift && is_close && !verification.is_flat;
    if args.json {
        let mut report = json!(verification);
        report["passes"] = json!(passes);
        report["reference"] = json!(reference.backend());
        output::data(&report.to_string());
    } else if passes {
        output::data(&format!(
            "ok: drift {:.2e}, largest difference {:.2e}",
            verification.drift, verification.max_difference
        ));
    }
    match verification {
        found if found.is_flat => Err(Failure::differs("the picture is of one colour")),
        found if found.drift <= max_drift && !is_close => {
            let psnr = found.psnr.unwrap_or(f64::INFINITY);
            Err(Failure::differs(format!("the picture's PSNR of {psnr:.1} dB is under {}", args.min_psnr)))
        }
        found if !passes => {
            let (drift, max) = (found.drift, max_drift);
            let (difference, made_by) = (found.max_difference, reference.backend());
            Err(Failure::differs(format!(
                "drift {drift:.2e} is over {max:e} (largest difference {difference:.2e}; reference by {made_by})"
            )))
        }
        _ => Ok(()),
    }
}

/// The drift that is allowed: processors round alike, and add what they multiply in other orders and precisions.
fn allowed(component: &Component) -> f64 {
    match component.precision() {
        Some(Precision::Int8) => 0.1,
        Some(Precision::Bf16) => 0.02,
        _ => 1e-3,
    }
}

/// That of a whole bundle: the most of its components.
fn max_drift(bundle: &Bundle, args: &VerifyArgs) -> f64 {
    let components = bundle.manifest().components.values();
    args.max_drift.unwrap_or_else(|| components.map(allowed).fold(0.0, f64::max))
}

/// Compares a bundle's components with those of another.
fn against(
    bundle: Bundle,
    other: &Path,
    backends: &Backends,
    place: &Place,
    args: &VerifyArgs,
) -> Result<(), Failure> {
    let other = open_bundle(other)?;
    let anywhere = backends.clone().device(Device::Auto);
    let elsewhere = anywhere.place(other.manifest().target)?;
    let found = || backends::open(backends, place);
    let expected = || backends::open(&anywhere, &elsewhere);
    // A process has one ONNX Runtime; that of a GPU runs the processor's models too.
    let (found, expected) = match place.gpu() {
        Some(_) => (found()?, expected()?),
        None => {
            let expected = expected()?;
            (found()?, expected)
        }
    };
    let mut found = models::pipeline(bundle, found)?;
    let mut expected = models::pipeline(other, expected)?;
    let drifts = found.compare_components(&mut expected)?;
    let bound = |name| accuracy::bound(found.bundle(), expected.bundle(), name);
    let of_both = |name| {
        let bundles = [found.bundle(), expected.bundle()];
        let components = bundles.iter().filter_map(|bundle| bundle.manifest().components.get(&name));
        components.map(allowed).fold(0.0, f64::max)
    };
    let limit = |name| args.max_drift.or_else(|| bound(name)).unwrap_or_else(|| of_both(name));
    let excess = drifts.iter().filter(|(name, drift)| *drift > limit(*name));
    let excess = excess.max_by(|a, b| f64::total_cmp(&(a.1 / limit(a.0)), &(b.1 / limit(b.0))));
    let passes = excess.is_none();
    if args.json {
        let components: serde_json::Map<_, _> =
            drifts.iter().map(|(role, drift)| (role.to_string(), json!(drift))).collect();
        output::data(&json!({ "components": components, "passes": passes }).to_string());
    } else {
        drifts
            .iter()
            .for_each(|(role, drift)| output::data(&format!("{:<16} drift {drift:.2e}", role.to_string())));
    }
    match excess {
        None => Ok(()),
        Some((name, drift)) => {
            Err(Failure::differs(format!("{name}: drift {drift:.2e} is over {:.2e}", limit(*name))))
        }
    }
}

/// Makes a bundle's reference.
pub(crate) fn record(bundle: &mut Bundle, backend: Arc<dyn Backend>, key: &SealKey) -> Result<(), Failure> {
    let mut pipeline = models::pipeline(bundle.clone(), backend)?;
    let reference = watched(|watch| match pipeline.make_reference(watch) {
        Err(error) if error.is_overflow() || matches!(error, Error::FlatPicture) => {
            let reason = format!("{}: {error}", bundle.root().display());
            Err(Failure::differs(reason)
                .with_hint("such an engine is not to be trusted; --no-reference compiles all the same"))
        }
        result => Ok(result?),
    })?;
    Ok(bundle.set_reference(&reference.to_bytes()?, key)?)
}

/// Runs something that samples under a progress bar.
fn watched<T>(work: impl FnOnce(Watch<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut bar = None;
    let mut on_event = |event: Event| {
        match event {
            Event::Started { steps } => bar = Some(Bar::steps(steps)),
            Event::Step { step, .. } => bar.iter().for_each(|bar| bar.step(step)),
            Event::Decoding { .. } => bar = None,
            _ => {}
        }
        std::ops::ControlFlow::Continue(())
    };
    work(Watch::new().on_event(&mut on_event))
}
