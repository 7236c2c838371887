//! Pictures of the GPU against those of the CPU.

use super::{OnGpu, kiln_with_gpu, on_cpu};
use crate::cli::{fail, succeed};

#[track_caller]
fn check(more: &[&str]) {
    let gpu = OnGpu::new(false);
    gpu.generate("gpu.png", more);
    let found = gpu.compare_to_cpu(false, "gpu.png", more);
    let most = found["max_difference"].as_u64().expect("a number");
    assert!(most <= 1, "{more:?}: {found}");
}

#[test]
fn a_picture_is_that_of_the_cpu() {
    check(&[]);
}

#[test]
fn so_is_one_without_guidance_and_one_with_noise_in_every_step() {
    check(&["--guidance-scale", "1"]);
    check(&["--eta", "1", "--batch-size", "1"]);
}

#[test]
fn schedulers_of_many_kinds_run_on_the_device() {
    for scheduler in ["euler-a", "heun", "dpm++2m:karras", "unipc", "lms", "pndm"] {
        check(&["--scheduler", scheduler]);
    }
}

#[test]
fn rescaled_guidance_runs_on_the_device() {
    check(&["--guidance-rescale", "0.7"]);
}

#[test]
fn what_needs_the_host_in_every_step_is_drawn_too() {
    let gpu = OnGpu::new(false);
    gpu.generate("first.png", &[]);
    let init = gpu.folder().join("first.png").display().to_string();
    check(&["--init-image", &init, "--strength", "0.6"]);
    check(&["--init-image", &init, "--mask", &init]);
    check(&["--vae-tile", "32"]);
    check(&["--hires", "1.5", "--hires-upscaler", "pixels"]);
}

#[test]
fn latents_do_not_leave_the_device_between_steps() {
    let gpu = OnGpu::new(false);
    let copied = |steps: &str| {
        let report = gpu.generate("a.png", &["--steps", steps]);
        report["from_device"].as_u64().expect("a number")
    };
    let (few, many) = (copied("3"), copied("9"));
    // A flag of four bytes per step says whether its prediction was finite.
    assert_eq!(many - few, 6 * 4, "bytes that were copied from the device");
}

#[test]
fn the_unet_is_recorded_once_and_repeated() {
    let gpu = OnGpu::new(false);
    let report = gpu.generate("a.png", &["--steps", "9"]);
    assert_eq!(report["graphs"], 8, "{report}");
}

#[test]
fn components_are_those_of_the_cpu() {
    let gpu = OnGpu::new(false);
    let (bundle, cpu) = (gpu.bundle.root().display().to_string(), on_cpu(false).display().to_string());
    let verify = |against: &str, more: &[&str]| {
        kiln_with_gpu(&[&["verify", &bundle, "--against", against], more].concat(), gpu.folder())
    };
    let said = succeed(&mut verify(&cpu, &[]));
    assert_eq!(said.lines().filter(|line| line.contains("drift")).count(), 4, "{said}");
    fail(&mut verify(&cpu, &["--max-drift", "0"]), 6, "is over 0.00e0");
    fail(&mut verify("none", &[]), 3, "none: is not a bundle");
}
