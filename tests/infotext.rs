//! What other programs read of pictures.

use crate::cli::{kiln, succeed, text_chunk, text_chunks};
use crate::fixtures::{scratch, tiny};

#[test]
fn pictures_carry_what_web_uis_read_of_them() {
    let (model, work) = (tiny(), scratch());
    let name = model.path().file_name().expect("a name").to_string_lossy().trim_start_matches('.').to_owned();
    let said = |prompt: &str, extra: &[&str]| {
        let args = ["generate", prompt, "--model", &model.path().display().to_string(), "--backend", "rten"]
            .map(str::to_owned);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(extra.iter().copied()).collect();
        let size = ["--width", "64", "--height", "64", "--out", "p.png"];
        succeed(&mut kiln(&[&args[..], &size].concat(), work.path()));
        let path = work.path().join(if extra.contains(&"--batch-size") { "p-1.png" } else { "p.png" });
        let keys: Vec<String> = text_chunks(&path).into_iter().map(|(key, _)| key).collect();
        assert!(keys.len() == 2 && keys.contains(&"kiln".to_owned()), "{keys:?}");
        text_chunk(&path, "parameters")
    };
    let found = said(
        "a red circle, \"quoted\": x",
        &[
            "--negative-prompt",
            "bad, worse",
            "--steps",
            "3",
            "--seed",
            "7",
            "--scheduler",
            "euler-a",
            "--guidance-scale",
            "5.5",
        ],
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        found,
        format!(
            "a red circle, \"quoted\": x\nNegative prompt: bad, worse\nSteps: 3, Sampler: Euler a, CFG scale: 5.5, \
             Seed: 7, Size: 64x64, Model: {name}, RNG: CPU, Version: kiln {version}"
        )
    );
    let found = said(
        "東",
        &[
            "--steps",
            "3",
            "--seed",
            "7",
            "--scheduler",
            "dpm++2m:karras",
            "--clip-skip",
            "1",
            "--variation-seed",
            "5",
            "--variation-strength",
            "0.25",
            "--hires",
            "1.5",
            "--hires-steps",
            "4",
            "--generator",
            "cuda",
            "--batch-size",
            "2",
        ],
    );
    assert_eq!(
        found,
        format!(
            "東\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 64x64, Model: {name}, \
             Variation seed: 5, Variation seed strength: 0.25, Denoising strength: 0.7, Clip skip: 2, Hires upscale: 1.5, \
             Hires steps: 4, Hires upscaler: Latent, Batch size: 2, Batch pos: 1, Version: kiln {version}"
        )
    );
}
