//! Pictures by kiln's kernels beside those by ONNX Runtime's operators.

use crate::cli::{fail, kiln, pixels, succeed};
use crate::fixtures::scratch;
use crate::support::references;

/// Instructions that some processors have; those that this one lacks are refused.
const INSTRUCTIONS: [&str; 5] = ["portable", "avx2", "avx512", "avx512-bf16", "amx"];

#[test]
fn kernels_draw_what_operators_of_onnx_runtime_draw() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let draw = |kernels: &str, out: &str| {
        let arguments =
            ["generate", "--model", &shapes, "a red circle", "--seed", "7", "--steps", "10", "--out", out];
        let mut command = kiln(&arguments, work.path());
        command.env("KILN_KERNELS", kernels);
        command
    };
    succeed(&mut draw("off", "off.png"));
    let expected = pixels(&work.path().join("off.png"));
    let mut n_drawn = 0;
    for name in INSTRUCTIONS {
        let output = draw(name, "own.png").output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("KILN_KERNELS: ") {
            continue;
        }
        assert!(output.status.success(), "{name}: {said}");
        let found = pixels(&work.path().join("own.png"));
        let differences = || expected.iter().zip(&found).map(|(a, b)| a.abs_diff(*b));
        assert!(differences().max() <= Some(1), "{name}: {:?}", differences().max());
        // Sums in another order round some channels to the neighbouring level, but few.
        let n_other = differences().filter(|difference| *difference > 0).count();
        assert!(n_other * 1000 < expected.len(), "{name}: {n_other}");
        n_drawn += 1;
    }
    assert!(n_drawn >= 1);
}

#[test]
fn names_of_no_kernels_are_refused_with_those_that_there_are() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let mut command = kiln(&["generate", "--model", &shapes, "x", "--steps", "1"], work.path());
    fail(command.env("KILN_KERNELS", "sse9"), 2, "KILN_KERNELS: 'sse9' is not off, auto or one of portable");
}

/// How much noise there is beside a picture, in decibels.
fn psnr(expected: &[u8], found: &[u8]) -> f64 {
    let squares = expected.iter().zip(found).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    10.0 * (255.0 * 255.0 * expected.len() as f64 / squares.sum::<f64>().max(1e-9)).log10()
}

#[test]
fn products_of_bf16_halve_the_bundle_and_keep_the_picture_on_every_processor() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let [exact, rounded] = ["f32", "bf16"].map(|precision| {
        let compiled = succeed(&mut kiln(&["compile", &shapes, "--precision", precision], work.path()));
        compiled.trim().to_owned()
    });
    let weights = |bundle: &str| -> u64 {
        let file = std::path::Path::new(bundle).join("unet.data");
        std::fs::metadata(file).expect("weights").len()
    };
    assert!(weights(&rounded) < weights(&exact) * 51 / 100);
    assert!(succeed(&mut kiln(&["inspect", &rounded], work.path())).contains("operators, bf16)"));
    let draw = |bundle: &str, kernels: &str, extra: &[&str]| {
        let arguments = ["generate", "--model", bundle, "a red circle", "--seed", "7", "--steps", "10"];
        let mut command = kiln(&[&arguments[..], &["--out", "made.png"], extra].concat(), work.path());
        let output = command.env("KILN_KERNELS", kernels).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_lacking = said.contains("KILN_KERNELS: ");
        assert!(output.status.success() || is_lacking, "{kernels}: {said}");
        (!is_lacking).then(|| pixels(&work.path().join("made.png")))
    };
    let expected = draw(&exact, "auto", &[]).expect("a picture");
    for kernels in [&["off", "auto"], &INSTRUCTIONS[..]].concat() {
        let Some(found) = draw(&rounded, kernels, &[]) else { continue };
        let psnr = psnr(&expected, &found);
        assert!(psnr > 45.0 && found != expected, "{kernels}: {psnr} dB");
        let mut verify = kiln(&["verify", &rounded], work.path());
        succeed(verify.env("KILN_KERNELS", kernels));
    }
    let cuda = ["compile", &shapes, "--precision", "bf16", "--target", "cuda"];
    fail(&mut kiln(&cuda, work.path()), 2, "precision: ONNX Runtime's CUDA provider has no kernels of bf16");
    let resident = draw(&rounded, "auto", &["--offload", "none", "--weights", "mapped"]);
    assert!(resident == draw(&rounded, "auto", &["--offload", "sequential"]), "offload changes no bit");
    let rten = kiln(&["generate", "--model", &rounded, "x", "--backend", "rten"], work.path());
    fail(&mut { rten }, 3, "rten reads no weights in bf16");
}
