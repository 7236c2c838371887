//! Several requests at once.

use std::sync::Arc;

use kiln_compile::TraceOptions;
use kiln_graph::{Cuts, EmitPolicy};
use kiln_nets::Sizes;
use kiln_runtime::{Backend, Drawing, MemoryOptions, Pipeline, Placement, Request, Size, Watch};

use crate::fixtures::{backends, bundle, onnxruntime, pipeline, sd15};

fn for_bundle() -> TraceOptions {
    TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic)
}

fn requests() -> Vec<Request> {
    let size = Size::new(64, 64);
    let plain = |prompt: &str, seed: u64| Request::new(prompt).seeds(vec![seed]).size(size);
    vec![
        plain("a red circle", 1).steps(5),
        plain("a blue star on the left", 2).steps(3).scheduler("euler-a"),
        plain("two green squares", 3).steps(4).guidance_scale(1.0).scheduler("dpm++2m:karras"),
        plain("a red circle", 4).steps(6).guidance_scale(3.0).negative_prompt("blue"),
        Request::new("a red circle").seeds(vec![5]).steps(3).size(Size::new(64, 128)),
        plain("a small circle", 6).steps(2).scheduler("heun"),
    ]
}

/// Latents and pictures of requests that begin one after another, one each evaluation, and end when they are done.
fn together(pipeline: &mut Pipeline, requests: &[Request]) -> Vec<(Vec<f32>, Vec<u8>)> {
    let mut session = pipeline.session();
    let mut waiting = requests.iter().enumerate();
    let mut drawings: Vec<(usize, Drawing)> = Vec::new();
    let mut done = vec![None; requests.len()];
    loop {
        if let Some((i, request)) = waiting.next() {
            drawings.push((i, session.begin(request, Watch::new()).expect("a drawing")));
        }
        if drawings.is_empty() {
            break;
        }
        let mut all: Vec<&mut Drawing> = drawings.iter_mut().map(|(_, drawing)| drawing).collect();
        session.advance(&mut all).into_iter().for_each(|result| result.expect("an evaluation"));
        for (i, drawing) in drawings.extract_if(.., |(_, drawing)| drawing.is_denoised()) {
            let output = session.finish(drawing, Watch::new()).expect("pictures");
            done[i] = Some((output.latents.iter().copied().collect(), output.images[0].data().to_vec()));
        }
    }
    done.into_iter().map(|output| output.expect("drawn")).collect()
}

fn alone(pipeline: &mut Pipeline, request: &Request) -> (Vec<f32>, Vec<u8>) {
    let output = pipeline.generate(request).expect("pictures");
    (output.latents.iter().copied().collect(), output.images[0].data().to_vec())
}

/// Rows of products are computed alone or together in the same order, but by rten where there is a single one.
const CLOSE: f32 = 1e-4;

#[track_caller]
fn check_together(backend: Arc<dyn Backend>, placement: Placement, tolerance: f32) {
    let mut pipeline = pipeline(bundle(&sd15(), &for_bundle()), backend);
    pipeline.set_memory(MemoryOptions::new().placement(placement)).expect("options");
    check_each(&mut pipeline, &requests(), placement, tolerance);
}

#[track_caller]
fn check_each(pipeline: &mut Pipeline, requests: &[Request], placement: Placement, tolerance: f32) {
    let found = together(pipeline, requests);
    for (request, (latents, picture)) in requests.iter().zip(found) {
        let expected = alone(pipeline, request);
        let worst = expected.0.iter().zip(&latents).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{placement:?}: {:?}: {worst}", request.prompts);
        let levels = expected.1.iter().zip(&picture).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(levels <= Some(if tolerance > 0.0 { 1 } else { 0 }), "{placement:?}: {levels:?}");
    }
}

#[test]
fn drawings_together_are_what_each_is_alone() {
    check_together(onnxruntime(), Placement::Packed, 0.0);
    check_together(onnxruntime(), Placement::Mapped, 0.0);
}

#[test]
fn approximations_of_drawings_together_are_each_one_s_own() {
    let size = Size::new(64, 64);
    let plain = |prompt: &str, seed: u64| Request::new(prompt).seeds(vec![seed]).size(size);
    let requests = [
        plain("a red circle", 1).steps(5).deep_every(2),
        plain("a blue star on the left", 2).steps(6).deep_every(2),
        plain("two green squares", 3).steps(6).deep_every(4).guidance_interval(0.0, 0.5),
        plain("a small circle", 4).steps(4).guidance_interval(0.5, 1.0),
        plain("a red circle", 5).steps(4),
    ];
    let policy = EmitPolicy { cuts: Cuts::Every(64 << 10), ..EmitPolicy::default() };
    for placement in [Placement::Packed, Placement::Mapped] {
        let mut pipeline =
            pipeline(bundle(&sd15(), &TraceOptions::for_bundle(policy.clone(), Sizes::Dynamic)), onnxruntime());
        pipeline.set_memory(MemoryOptions::new().placement(placement)).expect("options");
        check_each(&mut pipeline, &requests, placement, 0.0);
        let full = alone(&mut pipeline, &plain("a red circle", 1).steps(5));
        assert!(alone(&mut pipeline, &requests[0]).0 != full.0);
    }
}

#[test]
fn drawings_together_are_close_to_what_each_is_alone_with_rten() {
    let [_, rten] = backends();
    check_together(rten, Placement::Packed, CLOSE);
}

#[test]
fn engines_with_one_timestep_for_all_rows_take_turns() {
    let mut pipeline = pipeline(bundle(&sd15(), &TraceOptions::default()), onnxruntime());
    let requests = requests();
    let found = together(&mut pipeline, &requests);
    for (request, found) in requests.iter().zip(found) {
        assert!(found == alone(&mut pipeline, request), "{:?}", request.prompts);
    }
}
