//! Pictures by kiln's kernels beside those by ONNX Runtime's operators.

use crate::cli::{fail, kiln, pixels, succeed};
use crate::fixtures::scratch;
use crate::support::references;

/// Instructions that some processors have; those that this one lacks are refused.
const INSTRUCTIONS: [&str; 4] = ["portable", "avx2", "avx512", "avx512-bf16"];

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
