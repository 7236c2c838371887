//! Swapping LoRAs on a pipeline that runs.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET, VAE_DECODER};
use std::ops::ControlFlow;
use std::sync::Arc;

use kiln_lora::LoraFile;
use kiln_runtime::{ComponentName, Event, Pipeline, Pool, Watch};
use ndarray::ArrayD;

use super::Case;
use crate::fixtures::{backends, onnxruntime, pipeline};

/// Latents, and the engines that were loaded for them.
fn draw(pipeline: &mut Pipeline, case: &Case) -> (ArrayD<f32>, Vec<ComponentName>) {
    let mut loaded = Vec::new();
    let mut watch = |event| {
        if let Event::Loading(role) = event {
            loaded.push(role);
        }
        ControlFlow::Continue(())
    };
    let output = pipeline.generate_with(&case.request(), Watch::new().on_event(&mut watch)).expect("a picture");
    (output.latents, loaded)
}

#[test]
fn going_back_gives_the_same_bits_and_loads_only_what_changed() {
    // One changes UNet and text encoder, the other the UNet alone.
    let (a, b) = (Case::new("kohya"), Case::new("convolutions"));
    for backend in backends() {
        // What a prompt came to is forgotten, so that its encoder has to be loaded again.
        let pool = Pool::with_limits(None, 0);
        let builder = Pipeline::builder(a.base()).backend(backend).pool(&pool);
        let mut pipeline = builder.build().expect("a pipeline");
        let (plain, loaded) = draw(&mut pipeline, &a);
        assert_eq!(loaded, [UNET, TEXT_ENCODER, VAE_DECODER]);
        let mut draw_with = |loras: &[(Arc<LoraFile>, f32)]| {
            pipeline.set_loras(loras).expect("LoRAs that fit");
            draw(&mut pipeline, &a)
        };
        let (first, loaded) = draw_with(&a.pairs());
        assert_eq!(loaded, [UNET, TEXT_ENCODER]);
        assert_ne!(first, plain);
        assert_eq!(draw_with(&a.pairs()), (first.clone(), vec![]), "the same LoRAs again");
        let (second, loaded) = draw_with(&b.pairs());
        assert_eq!(loaded, [UNET, TEXT_ENCODER]);
        assert_ne!(second, first);
        let stronger: Vec<_> = b.pairs().into_iter().map(|(file, weight)| (file, weight * 1.5)).collect();
        let (third, loaded) = draw_with(&stronger);
        assert_eq!(loaded, [UNET]);
        assert_ne!(third, second);
        assert_eq!(draw_with(&a.pairs()).0, first, "A, B, A");
        assert_eq!(draw_with(&[]).0, plain, "none");
        let nothing: Vec<_> = a.pairs().into_iter().map(|(file, _)| (file, 0.0)).collect();
        assert_eq!(draw_with(&nothing), (plain.clone(), vec![]), "weight 0");
    }
}

#[test]
fn a_lora_that_does_not_fit_changes_nothing() {
    let (fits, foreign) = (Case::new("kohya"), Case::new("original"));
    let mut pipeline = pipeline(fits.base(), onnxruntime());
    pipeline.set_loras(&fits.pairs()).expect("a LoRA that fits");
    let (before, _) = draw(&mut pipeline, &fits);
    let error = pipeline.set_loras(&foreign.pairs()).expect_err("another family");
    assert!(error.to_string().contains("original-0.safetensors: module 'lora_"), "{error}");
    assert_eq!(draw(&mut pipeline, &fits), (before, vec![]));
}

#[test]
fn weights_stored_in_16_bits_are_changed_too() {
    use kiln_compile::TraceOptions;
    use kiln_graph::{ElementType, EmitPolicy, Precision, PrecisionPolicy};

    let case = Case::new("kohya");
    let half = PrecisionPolicy { storage: Some(ElementType::F16), ..PrecisionPolicy::default() };
    let products = PrecisionPolicy::with_products(Precision::Bf16);
    // In bf16, weights that were rounded are changed and rounded again; those of the checkpoint are exact in f16.
    for (precision, backends, most) in [(half, backends().to_vec(), 0.0), (products, vec![onnxruntime()], 0.02)]
    {
        let options = |loras| TraceOptions {
            policy: EmitPolicy { precision: precision.clone(), ..EmitPolicy::default() },
            loras,
            ..TraceOptions::default()
        };
        let plain = crate::fixtures::bundle(&case.checkpoint, &options(vec![]));
        let fused = crate::fixtures::bundle(&case.checkpoint, &options(case.loras.clone()));
        for backend in backends {
            let mut swapped = pipeline(plain.clone(), backend.clone());
            swapped.set_loras(&case.pairs()).expect("a LoRA that fits");
            let mut fused = pipeline(fused.clone(), backend);
            let [found, expected] = [&mut swapped, &mut fused].map(|pipeline| draw(pipeline, &case).0);
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
            let difference = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let drift = (difference / square(&mut expected.iter().copied())).sqrt();
            assert!(drift <= most, "{precision:?}: {drift}");
        }
    }
}
