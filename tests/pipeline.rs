//! Components and whole pipelines against diffusers, on every backend.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET, VAE_DECODER, VAE_ENCODER};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use kiln_compile::TraceOptions;
use kiln_engine::{Backend, LoadOptions, Rten, Tensor, TensorView};
use kiln_graph::EmitPolicy;
use kiln_nets::Sizes;
use kiln_runtime::{Bundle, ComponentName, Error, Event, PromptSyntax, Request, Size, Watch};
use ndarray::{ArrayD, Axis, arr1};
use serde_json::json;

use crate::fixtures::{backends, bundle, copy_folder, onnxruntime, pipeline, scratch, sd15};
use crate::support::{References, assert_close};

const COMPONENTS: f32 = 1e-4;
const LATENTS: f32 = 1e-3;

fn golden() -> (Bundle, References) {
    (
        bundle(&sd15(), &TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic)),
        References::open("sd15/reference.safetensors"),
    )
}

#[track_caller]
fn check_component(role: ComponentName, inputs: &[(&str, Tensor)], expected: &[(&str, &str)]) {
    let (bundle, references) = (bundle(&sd15(), &TraceOptions::default()), golden().1);
    let model = bundle.path(&bundle.component(role).expect("the component").segments[0].engine);
    for backend in backends() {
        let mut engine = backend.load(&model, &LoadOptions::default()).expect("the engine");
        let names: Vec<String> = engine.outputs().iter().map(|port| port.name.clone()).collect();
        let inputs: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(name, t)| (*name, t.view())).collect();
        let outputs = engine.run(&inputs).expect("a run");
        for (port, key) in expected {
            let index = names.iter().position(|name| name == port).expect("the output");
            let found = outputs[index].f32().expect("floats");
            let what = format!("{role} {port} on {}", backend.name());
            assert_close(&what, found, references.f32(key).view(), COMPONENTS);
        }
    }
}

#[test]
fn the_text_encoder_is_transformers() {
    let ids = References::open("sd15/reference.safetensors").i64("text_encoder.input_ids");
    let ids = ArrayD::from_shape_vec(vec![2, 77], ids).expect("two prompts");
    check_component(
        TEXT_ENCODER,
        &[("input_ids", ids.into())],
        &[("last_hidden_state", "text_encoder.last_hidden_state")],
    );
}

#[test]
fn the_unet_is_diffusers() {
    let references = References::open("sd15/reference.safetensors");
    let timestep = references.f32("unet.timestep").into_shape_with_order(vec![1]).expect("one timestep");
    check_component(
        UNET,
        &[
            ("sample", references.f32("unet.sample").into()),
            ("timestep", timestep.into()),
            ("encoder_hidden_states", references.f32("unet.encoder_hidden_states").into()),
        ],
        &[("out_sample", "unet.output")],
    );
}

#[test]
fn the_autoencoder_is_diffusers() {
    let references = References::open("sd15/reference.safetensors");
    check_component(
        VAE_ENCODER,
        &[("sample", references.f32("vae.encode.image").into())],
        &[("mean", "vae.encode.mean"), ("logvar", "vae.encode.logvar")],
    );
    check_component(
        VAE_DECODER,
        &[("latents", references.f32("vae.decode.latent").into())],
        &[("sample", "vae.decode.output")],
    );
}

fn golden_request() -> Request {
    Request::new("a photo of an astronaut riding a horse on mars")
        .negative_prompt("blurry, low quality")
        .seeds(vec![7])
        .steps(10)
        .size(Size::new(64, 64))
}

#[track_caller]
fn check_pipeline(request: &Request, latents: &str, image: Option<&str>) {
    check_bundle(&golden().0, request, latents, image);
}

#[track_caller]
fn check_bundle(bundle: &Bundle, request: &Request, latents: &str, image: Option<&str>) {
    let references = References::open("sd15/reference.safetensors");
    for backend in backends() {
        let mut pipeline = pipeline(bundle.clone(), backend);
        let output = pipeline.generate(request).expect("pictures");
        let what = format!("{latents} on {}", pipeline.backend().name());
        assert_close(&what, output.latents.view(), references.f32(latents).view(), LATENTS);
        assert_eq!(output.images.len(), request.prompts.len());
        let Some(key) = image else { continue };
        let expected = references.f32(key);
        let expected = expected.index_axis(Axis(0), 0).permuted_axes([1, 2, 0].as_slice());
        for (found, expected) in output.images[0].data().iter().zip(expected.iter()) {
            assert!((f32::from(*found) - expected * 255.0).abs() <= 2.0, "{what}: {found} for {expected}");
        }
    }
}

#[test]
fn pictures_are_diffusers() {
    check_pipeline(&golden_request(), "pipeline.latents", Some("pipeline.image"));
}

#[test]
fn pictures_with_noise_at_each_step_are_diffusers() {
    check_pipeline(&golden_request().eta(1.0), "pipeline.eta1.latents", None);
}

#[test]
fn a_batch_with_its_own_negative_prompts_is_diffusers() {
    let request = golden_request();
    let (prompt, negative) = (request.prompts[0].clone(), request.negative_prompts[0].clone());
    let request = request.prompts([prompt.as_str(), "a small cat"]).negative_prompts([negative.as_str(), ""]);
    check_pipeline(&request, "pipeline.batch2.latents", None);
}

#[test]
fn a_scheduler_file_that_says_little_is_completed_and_corrected_as_in_diffusers() {
    let checkpoint = scratch();
    copy_folder(&sd15(), checkpoint.path());
    let config = json!({
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    });
    let path = checkpoint.path().join("scheduler/scheduler_config.json");
    std::fs::write(path, config.to_string()).expect("a file");
    let bundle = bundle(checkpoint.path(), &TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic));
    check_bundle(&bundle, &golden_request(), "pipeline.minimal_scheduler.latents", None);
}

#[test]
fn without_guidance_only_the_prompt_counts() {
    let (bundle, _) = golden();
    let mut pipeline = pipeline(bundle, onnxruntime());
    let request = golden_request().guidance_scale(1.0).steps(2);
    let mut latents = |negative: &str| {
        let request = request.clone().negative_prompt(negative);
        pipeline.generate(&request).expect("a picture").latents
    };
    assert_eq!(latents("blurry"), latents("sharp"));
}

#[test]
fn sizes_that_do_not_halve_evenly_work() {
    let (bundle, _) = golden();
    let request = golden_request().steps(2).size(Size::new(40, 72));
    let latents = backends().map(|backend| {
        let mut pipeline = pipeline(bundle.clone(), backend);
        let output = pipeline.generate(&request).expect("a picture");
        assert_eq!((output.images[0].width(), output.images[0].height()), (40, 72));
        output.latents
    });
    assert_close("72x40", latents[0].view(), latents[1].view(), LATENTS);
}

#[test]
fn the_same_seed_gives_the_same_picture_and_another_another() {
    let (bundle, _) = golden();
    let mut pipeline = pipeline(bundle, onnxruntime());
    let mut draw = |seed| {
        let request = golden_request().seeds(vec![seed]).steps(2);
        pipeline.generate(&request).expect("a picture").images
    };
    let first = draw(1);
    assert_eq!(first, draw(1));
    assert_ne!(first, draw(2));
}

#[test]
fn a_run_is_cancelled_between_steps() {
    let (bundle, _) = golden();
    let mut pipeline = pipeline(bundle, onnxruntime());
    let mut seen = 0;
    let mut watch = |event| match event {
        Event::Step { step: 3, .. } => ControlFlow::Break(()),
        Event::Step { .. } => {
            seen += 1;
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    };
    let result = pipeline.generate_with(&golden_request(), Watch::new().on_event(&mut watch));
    assert!(matches!(result, Err(Error::Cancelled { step: 3, steps: 10 })), "{result:?}");
    assert_eq!(seen, 2);
    pipeline.generate(&golden_request().steps(1)).expect("usable afterwards");
}

#[test]
fn a_prompt_that_is_too_long_is_cut_and_said_to_be() {
    let (bundle, _) = golden();
    let mut pipeline = pipeline(bundle, onnxruntime());
    let mut truncated = 0;
    let request =
        golden_request().prompts(vec!["word ".repeat(100)]).prompt_syntax(PromptSyntax::Plain).steps(1);
    let mut watch = |event| {
        if let Event::Truncated(n) = event {
            truncated = n;
        }
        ControlFlow::Continue(())
    };
    pipeline.generate_with(&request, Watch::new().on_event(&mut watch)).expect("a picture");
    assert_eq!(truncated, 25);
}

#[track_caller]
fn check_refused(request: Request, message: &str) {
    let (bundle, _) = golden();
    let mut pipeline = pipeline(bundle, onnxruntime());
    let error = pipeline.generate(&request).expect_err("refused");
    assert_eq!(error.to_string(), message);
}

#[test]
fn impossible_requests_are_refused() {
    let good = golden_request;
    check_refused(good().steps(0), "steps: 0 is not a positive number");
    check_refused(good().steps(1001), "steps: 1001 is not a number from 1 to 1000");
    check_refused(good().width(65), "width: 65 is not a multiple of 8 up to 8192");
    check_refused(good().height(0), "height: 0 is not a multiple of 8 up to 8192");
    check_refused(good().height(8200), "height: 8200 is not a multiple of 8 up to 8192");
    check_refused(good().eta(1.5), "eta: 1.5 is not a number from 0 to 1");
    check_refused(good().prompts(Vec::<String>::new()), "batch size: 0 is not a number from 1 to 256");
    let nan = good().guidance_scale(f32::NAN);
    check_refused(nan, "guidance scale: NaN is not a finite number");
}

#[cfg(target_os = "linux")]
#[test]
fn the_built_in_backend_takes_as_many_threads_as_it_is_told() {
    let (bundle, _) = golden();
    let model = bundle.path(&bundle.component(TEXT_ENCODER).expect("a text encoder").segments[0].engine);
    let engine = Rten::new(Some(137)).load(&model, &LoadOptions::default()).expect("the engine");
    let has_thread = |name: &str| {
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
            .any(|c| c.trim() == name)
    };
    // A thread takes its name once it runs.
    let begun = Instant::now();
    while !has_thread("rten-136") {
        assert!(begun.elapsed() < Duration::from_secs(60), "no thread rten-136");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!has_thread("rten-137"));
    drop(engine);
}

#[test]
fn an_engine_names_inputs_that_do_not_fit() {
    let (bundle, _) = golden();
    let model = bundle.path(&bundle.component(UNET).expect("a UNet").segments[0].engine);
    for backend in backends() {
        let mut engine = backend.load(&model, &LoadOptions::default()).expect("the engine");
        let timestep = arr1(&[1f32]).into_dyn();
        let mut refuse = |inputs: &[(&str, TensorView<'_>)], message: &str| {
            let error = engine.run(inputs).expect_err("refused").to_string();
            assert!(error.ends_with(message), "{error}");
        };
        let t = TensorView::F32(timestep.view());
        refuse(&[("noise", t.clone())], "has no input 'noise'; it has sample, timestep");
        refuse(&[("timestep", t.clone())], "input 'sample' (f32 [?, 4, ?, ?]) is missing");
        refuse(&[("sample", t)], "input 'sample' (f32 [?, 4, ?, ?]) got f32 [1]");
    }
}
