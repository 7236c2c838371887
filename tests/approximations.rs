//! What may be left out of the denoiser's work, by the command line.

use std::path::Path;

use serde_json::Value;

use crate::cli::{fail, kiln, pixels, psnr, succeed};
use crate::fixtures::scratch;
use crate::support::references;

/// The small model in segments.
fn compiled(work: &Path, segment_size: &str) -> String {
    let shapes = references().join("../../models/shapes").display().to_string();
    let compile = ["compile", &shapes, "--segment-size", segment_size, "--no-reference"];
    succeed(&mut kiln(&compile, work)).trim().to_owned()
}

fn draw(bundle: &str, work: &Path, extra: &[&str]) -> (Vec<u8>, Value) {
    let usual =
        ["generate", "--model", bundle, "a red circle above a blue square", "--seed", "7", "--steps", "12"];
    let said = succeed(&mut kiln(&[&usual[..], &["--json", "--out", "made.png"], extra].concat(), work));
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let picture = said["images"][0].as_str().expect("a picture");
    (pixels(&work.join(picture)), said)
}

#[test]
fn deep_layers_that_are_reused_change_the_picture_little_and_the_same_under_offload() {
    let work = scratch();
    let bundle = compiled(work.path(), "64KiB");
    let (expected, said) = draw(&bundle, work.path(), &[]);
    assert!(said.get("deep_every").is_none());
    assert_eq!(draw(&bundle, work.path(), &["--deep-every", "1"]).0, expected);
    let (found, said) = draw(&bundle, work.path(), &["--deep-every", "2"]);
    assert_eq!(said["deep_every"], 2);
    let near = psnr(&expected, &found);
    assert!(near > 20.0 && found != expected, "{near} dB");
    let (far, _) = draw(&bundle, work.path(), &["--deep-every", "12"]);
    assert!(psnr(&expected, &far) < near);
    let mapped = draw(&bundle, work.path(), &["--deep-every", "2", "--weights", "mapped"]).0;
    assert_eq!(draw(&bundle, work.path(), &["--deep-every", "2", "--offload", "sequential"]).0, mapped);
}

#[test]
fn approximations_go_with_every_task_and_sampler() {
    let work = scratch();
    let bundle = compiled(work.path(), "64KiB");
    draw(&bundle, work.path(), &[]);
    std::fs::copy(work.path().join("made.png"), work.path().join("first.png")).expect("a copy");
    let usual = ["--deep-every", "3", "--guidance-end", "0.6"];
    for task in [
        &["--scheduler", "heun"][..],
        &["--scheduler", "dpm++2m"],
        &["--init-image", "first.png", "--strength", "0.7"],
        &["--init-image", "first.png", "--mask", "first.png"],
        &["--hires", "1.5"],
        &["--batch-size", "3"],
    ] {
        let (exact, _) = draw(&bundle, work.path(), task);
        let (found, _) = draw(&bundle, work.path(), &[task, &usual].concat());
        assert!(found != exact && psnr(&exact, &found) > 8.0, "{task:?}: {} dB", psnr(&exact, &found));
    }
}

#[test]
fn a_model_without_segments_has_no_deep_layers() {
    let work = scratch();
    let bundle = compiled(work.path(), "1GiB");
    let arguments = ["generate", "--model", &bundle, "x", "--steps", "2", "--deep-every", "2"];
    let reason =
        "deep every: the model is compiled into 2 segments, too few to tell its ends from what is between them";
    fail(&mut kiln(&arguments, work.path()), 2, reason);
}

#[test]
fn steps_outside_of_the_interval_are_not_guided() {
    let work = scratch();
    let bundle = compiled(work.path(), "16MiB");
    let unguided = draw(&bundle, work.path(), &["--guidance-scale", "1"]).0;
    let never = draw(&bundle, work.path(), &["--guidance-start", "0.99"]).0;
    assert_eq!(never, unguided, "no step lies after 99 % of the way");
    let guided = draw(&bundle, work.path(), &[]).0;
    let (partly, said) = draw(&bundle, work.path(), &["--guidance-start", "0.1", "--guidance-end", "0.7"]);
    assert_eq!([&said["guidance_start"], &said["guidance_end"]], [0.1, 0.7]);
    assert!(partly != guided && partly != unguided);
    assert!(psnr(&guided, &partly) > psnr(&guided, &unguided));
}

#[test]
fn intervals_that_are_none_are_refused() {
    let work = scratch();
    let bundle = compiled(work.path(), "16MiB");
    for (extra, reason) in [
        (
            ["--guidance-start", "0.5", "--guidance-end", "0.5"],
            "guidance start: 0.5 is not before the end, 0.5",
        ),
        (["--guidance-start", "-1", "--deep-every", "1"], "guidance start: -1 is not a number from 0 to 1"),
        (["--guidance-end", "NaN", "--deep-every", "1"], "guidance end: NaN is not a number from 0 to 1"),
        (["--guidance-end", "1", "--deep-every", "0"], "deep every: 0 is not a positive number"),
    ] {
        let arguments = [&["generate", "--model", &bundle, "x", "--steps", "2"][..], &extra].concat();
        fail(&mut kiln(&arguments, work.path()), 2, reason);
    }
}
