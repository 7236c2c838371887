//! Offload changes what is loaded, and no picture.

use kiln_bundle::stable_diffusion::UNET;
use std::ops::ControlFlow;

use kiln_runtime::{MemoryOptions, Offload, Placement, Request, VaeTiling, Watch};

use super::{draw, open_small, small};
use crate::cli::{fail, kiln};
use crate::fixtures::{backends, onnxruntime, pipeline, scratch};
use crate::lora::Case;

fn request() -> Request {
    let mut request = Request::new("a red circle");
    request.prompts = vec!["a red circle".into(), "a blue square".into()];
    request.steps = Some(3);
    request
}

#[test]
fn pictures_do_not_depend_on_what_stays_loaded() {
    for backend in backends() {
        let mut pipeline = pipeline(open_small(), backend);
        let mut draw = |offload| {
            let memory = MemoryOptions::default().offload(offload).placement(Placement::Mapped);
            pipeline.set_memory(memory).expect("options");
            pipeline.generate(&request()).expect("pictures")
        };
        let whole = draw(Offload::None);
        for offload in [Offload::Model, Offload::Sequential] {
            let other = draw(offload);
            assert_eq!(other.latents, whole.latents, "{offload:?}");
            assert_eq!(other.images, whole.images, "{offload:?}");
        }
    }
}

#[test]
fn a_batch_is_decoded_one_latent_at_a_time() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let together = pipeline.generate(&request()).expect("pictures");
    for (i, prompt) in request().prompts.into_iter().enumerate() {
        let alone = request().prompts(vec![prompt]).seeds(vec![0]);
        let mut decoded = 0;
        let mut watch = |event| {
            decoded += usize::from(matches!(event, kiln_runtime::Event::Decoding { .. }));
            ControlFlow::Continue(())
        };
        let output = pipeline.generate_with(&alone, Watch::new().on_event(&mut watch)).expect("a picture");
        assert_eq!(decoded, 2, "before and after the one picture");
        // The first picture's noise is that of the batch's first row.
        if i == 0 {
            let (found, expected) = (&output.images[0], &together.images[0]);
            assert!(found.compare(expected).expect("one size").max_difference <= 1);
        }
    }
}

#[test]
fn loras_change_segments_as_they_change_the_whole() {
    let case = Case::new("peft");
    let mut pipeline = pipeline(case.segmented(), onnxruntime());
    let n_segments = pipeline.bundle().component(UNET).expect("a UNet").segments.len();
    assert!(n_segments > 10, "{n_segments}");
    let mut draw = |offload| {
        let memory = MemoryOptions::default().offload(offload).placement(Placement::Mapped);
        pipeline.set_memory(memory).expect("options");
        pipeline.set_loras(&[]).expect("no LoRA");
        let plain = pipeline.generate(&case.request()).expect("a picture").latents;
        pipeline.set_loras(&case.pairs()).expect("LoRAs that fit");
        let changed = pipeline.generate(&case.request()).expect("a picture").latents;
        assert_ne!(plain, changed, "{offload:?}");
        changed
    };
    let whole = draw(Offload::None);
    assert_eq!(draw(Offload::Model), whole);
    assert_eq!(draw(Offload::Sequential), whole);
}

#[test]
fn options_that_contradict_themselves_are_refused() {
    let mut pipeline = pipeline(open_small(), onnxruntime());
    let mut refuse = |memory: MemoryOptions, message: &str| {
        let error = pipeline.set_memory(memory).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
    };
    let tiled = |tiling: VaeTiling, overlap| MemoryOptions::default().vae_tiling(tiling.overlap(overlap));
    refuse(tiled(VaeTiling::of(0), 0.25), "VAE tile: 0 is not a positive number");
    refuse(tiled(VaeTiling::default(), f64::NAN), "VAE tile overlap: NaN is not a number from 0 to under 0.9");
    refuse(tiled(VaeTiling::default(), 0.95), "0.95 is not a number from 0 to under 0.9");
    refuse(MemoryOptions::default().prefetch(1000), "prefetch: 1000");
    let packed = Some(Placement::Packed);
    let streamed = MemoryOptions::default().offload(Offload::Sequential).placement(packed);
    refuse(streamed, "weights: packed ones take seconds to load");

    let (model, work) = (small().display().to_string(), scratch());
    let out = work.path().join("a.png");
    let refuse = |extra: &[&str], message: &str| {
        drop(fail(&mut kiln(&[&draw(&model, &out)[..], extra].concat(), work.path()), 2, message));
    };
    refuse(&["--vae-tile", "many"], "expected a number of pixels or auto");
    refuse(&["--vae-tile", "30", "--width", "128", "--height", "128"], "VAE tile: 30 is not a multiple of 4");
    refuse(&["--offload", "some"], "--offload");
    refuse(&["--vae-tile-overlap", "0.5"], "--vae-tile");
    assert!(!out.exists());
}
