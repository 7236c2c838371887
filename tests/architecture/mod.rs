//! An architecture that kiln does not know, registered from outside: no UNet, no CLIP, flow matching.

mod bundle;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_engine::{Backend, LoadOptions, TensorView};
use kiln_runtime::architecture::{
    Architecture, Conditioner, Conditioning, Defaults, Denoiser, Engines, Model, Packing, PassInfo,
    PassSchedule, Sampling, SamplingRequest, Task, Texts,
};
use kiln_runtime::generator::TorchCpuGenerator;
use kiln_runtime::scheduler::{Method, Noise, Sampler, Schedule, SchedulerError};
use kiln_runtime::{Bundle, ComponentName, Error, Output, Pipeline, Pool, Request};
use ndarray::{Array2, ArrayD, Ix3, Ix4};

use crate::fixtures::{backends, scratch};
use bundle::{ARCHITECTURE, CHANNELS, DECODER, EMBEDDER, PAD, SIDE, TOKENS, TRANSFORMER};

#[derive(Debug)]
struct ToyFlow;

impl Architecture for ToyFlow {
    fn is(&self, name: &str) -> bool {
        name == ARCHITECTURE
    }

    fn open(&self, bundle: &Bundle) -> Result<Model, Error> {
        let path = bundle.path(&bundle.pipeline()?.scheduler);
        let schedule: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
        let steps = schedule["steps"].as_u64().expect("a number") as usize;
        let token_scale = bundle.pipeline()?.settings.get("token_scale").and_then(|scale| scale.as_f64());
        Ok(Model {
            conditioner: Box::new(Bytes { token_scale: token_scale.unwrap_or(1.0) as f32 }),
            denoiser: Box::new(Transformer),
            sampling: Box::new(FlowMatching { steps }),
        })
    }
}

/// Ids of a text's bytes, and how many did not fit.
fn tokenize(text: &str) -> ([i64; TOKENS], usize) {
    let mut ids = [PAD; TOKENS];
    ids.iter_mut().zip(text.bytes()).for_each(|(id, byte)| *id = byte.into());
    (ids, text.len().saturating_sub(TOKENS))
}

#[derive(Debug)]
struct Bytes {
    token_scale: f32,
}

impl Conditioner for Bytes {
    fn n_blocks(&self, _texts: &Texts<'_>) -> Result<u64, Error> {
        Ok(1)
    }

    fn encode(&self, texts: &Texts<'_>, engines: &mut dyn Engines) -> Result<Conditioning, Error> {
        let tokenized: Vec<_> = texts.all.iter().map(|text| tokenize(text)).collect();
        let ids = Array2::from_shape_fn((tokenized.len(), TOKENS), |(row, i)| tokenized[row].0[i]).into_dyn();
        let outputs = engines.run(EMBEDDER, &[("ids", TensorView::I64(ids.view()))])?;
        let n_truncated = tokenized.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let tokens = outputs.get("tokens")?.to_owned() * self.token_scale;
        Ok(Conditioning { tensors: vec![("tokens".into(), tokens)], n_truncated })
    }
}

#[derive(Debug)]
struct Transformer;

impl Denoiser for Transformer {
    fn component(&self, _task: Task) -> ComponentName {
        TRANSFORMER
    }

    fn latents_input(&self) -> &str {
        "patches"
    }

    fn timestep_input(&self) -> &str {
        "sigma"
    }

    fn timestep(&self, timestep: f32) -> f32 {
        timestep / 1000.0
    }

    fn conditions(&self, _pass: &PassInfo<'_>, conditioning: &Conditioning) -> Vec<(String, ArrayD<f32>)> {
        conditioning.tensors.clone()
    }

    fn packing(&self) -> Option<&dyn Packing> {
        Some(&Patches)
    }
}

/// Patches of 2 x 2 latents, `[B, C, 2h, 2w]` as `[B, h w, 4 C]`.
struct Patches;

/// Where an element of a packed row comes from: its channel, row and column.
fn place(patch: usize, feature: usize) -> [usize; 3] {
    let half = SIDE / 2;
    [feature / 4, 2 * (patch / half) + feature % 4 / 2, 2 * (patch % half) + feature % 2]
}

impl Packing for Patches {
    fn pack<'a>(&self, latents: &'a ArrayD<f32>) -> Result<Cow<'a, ArrayD<f32>>, Error> {
        let latents = latents.view().into_dimensionality::<Ix4>().expect("four axes");
        let shape = vec![latents.dim().0, SIDE * SIDE / 4, 4 * CHANNELS];
        Ok(Cow::Owned(ArrayD::from_shape_fn(shape, |at| {
            let [c, y, x] = place(at[1], at[2]);
            latents[[at[0], c, y, x]]
        })))
    }

    fn unpack(&self, prediction: ArrayD<f32>, latents: &[usize]) -> Result<ArrayD<f32>, Error> {
        let packed = prediction.into_dimensionality::<Ix3>().expect("three axes");
        let mut unpacked = ArrayD::zeros(latents);
        for ((row, patch, feature), value) in packed.indexed_iter() {
            let [c, y, x] = place(patch, feature);
            unpacked[[row, c, y, x]] = *value;
        }
        Ok(unpacked)
    }
}

#[derive(Debug)]
struct FlowMatching {
    steps: usize,
}

impl Sampling for FlowMatching {
    fn defaults(&self, _task: Task) -> Defaults {
        Defaults { steps: self.steps, guidance_scale: 3.0, strength: 1.0, control_scale: 1.0 }
    }

    fn schedule(&self, request: &SamplingRequest<'_>) -> Result<PassSchedule, Error> {
        let n = request.steps;
        let sigmas: Vec<f32> = (0..=n).map(|i| 1.0 - i as f32 / n as f32).collect();
        let schedule = Schedule::plain(sigmas[..n].iter().map(|sigma| 1000.0 * f64::from(*sigma)));
        Ok(PassSchedule {
            sampler: Sampler::new("FlowEuler", n, schedule, Box::new(FlowEuler { sigmas })),
            begin: 0,
        })
    }
}

/// Euler's method along a straight path from noise to data (Liu et al. 2022, Lipman et al. 2022).
struct FlowEuler {
    sigmas: Vec<f32>,
}

impl Method for FlowEuler {
    fn step(
        &mut self,
        call: usize,
        output: &ArrayD<f32>,
        latents: &mut ArrayD<f32>,
        _noise: &mut Noise<'_>,
    ) -> Result<(), SchedulerError> {
        let step = self.sigmas[call + 1] - self.sigmas[call];
        latents.zip_mut_with(output, |latent, velocity| *latent += step * velocity);
        Ok(())
    }

    fn level(&self, call: usize) -> Result<(f32, f32), SchedulerError> {
        Ok((1.0 - self.sigmas[call], self.sigmas[call]))
    }
}

fn pipeline(bundle: &Bundle, backend: Arc<dyn Backend>) -> Pipeline {
    Pipeline::builder(bundle.clone()).backend(backend).architecture(ToyFlow).build().expect("a pipeline")
}

/// What the pipeline should come to, by hand: engines called one by one, guidance and steps written out.
fn by_hand(
    bundle: &Bundle,
    backend: &dyn Backend,
    prompt: &str,
    seed: u64,
    n: usize,
    scale: f32,
) -> ArrayD<f32> {
    let load = |name: ComponentName| {
        let path = bundle.path(&format!("{name}.onnx"));
        backend.load(&path, &LoadOptions::default()).expect("an engine")
    };
    let ids = |text: &str| ArrayD::from_shape_vec(vec![1, TOKENS], tokenize(text).0.to_vec()).expect("ids");
    let (mut embedder, mut transformer) = (load(EMBEDDER), load(TRANSFORMER));
    let tokens = ["", prompt].map(|text| {
        let made = embedder.run(&[("ids", TensorView::I64(ids(text).view()))]).expect("tokens").swap_remove(0);
        made.into_f32().expect("floats")
    });
    let mut latents = TorchCpuGenerator::new(seed).randn(&[1, CHANNELS, SIDE, SIDE]);
    for i in 0..n {
        let sigma = ArrayD::from_elem(vec![1], 1.0 - i as f32 / n as f32);
        let packed = Patches.pack(&latents).expect("patches").into_owned();
        let [without, with] = tokens.each_ref().map(|tokens| {
            let inputs = [("patches", &packed), ("sigma", &sigma), ("tokens", tokens)];
            let inputs = inputs.map(|(name, value)| (name, TensorView::F32(value.view())));
            let made = transformer.run(&inputs).expect("a velocity").swap_remove(0).into_f32().expect("floats");
            Patches.unpack(made, latents.shape()).expect("latents")
        });
        let velocity = &without + &((&with - &without) * scale);
        latents = latents - velocity / n as f32;
    }
    latents
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Output {
    pipeline.generate(request).expect("a picture")
}

#[test]
fn an_architecture_from_outside_draws_what_its_parts_come_to() {
    let folder = scratch();
    let bundle = bundle::write(folder.path());
    for backend in backends() {
        let mut pipeline = pipeline(&bundle, backend.clone());
        let request = Request::new("a cat").seed(5);
        let output = draw(&mut pipeline, &request);
        let expected = by_hand(&bundle, &*backend, "a cat", 5, 6, 3.0);
        crate::support::assert_close("latents", output.latents.view(), expected.view(), 1e-4);
        assert_eq!((output.images[0].width(), output.images[0].height()), (16, 16));
        assert!(!output.images[0].is_flat(8), "something is drawn");
        assert_ne!(draw(&mut pipeline, &request.clone().prompts(["a dog"])).latents, output.latents);
        assert_ne!(draw(&mut pipeline, &request.clone().seed(6)).latents, output.latents);
        assert_eq!(draw(&mut pipeline, &request).latents, output.latents, "again");

        let job = pipeline.resolve(&request).expect("a job");
        assert_eq!((job.first.steps, job.guidance.scale, job.scheduler()), (6, 3.0, "FlowEuler"));
        let error = pipeline.generate(&request.init(kiln_runtime::Init::new(output.images[0].clone())));
        assert_eq!(
            error.expect_err("refused").to_string(),
            "init image: this model has no encoder for pictures"
        );
    }
}

#[test]
fn equal_text_encoders_share_encodings_only_under_equal_settings() {
    let [backend, _] = backends();
    let folders = [scratch(), scratch()];
    let bundles = [1.0, 2.0].map(|scale| BTreeMap::from([("token_scale".to_owned(), scale.into())]));
    let bundles: Vec<Bundle> = folders
        .iter()
        .zip(bundles)
        .map(|(folder, settings)| bundle::write_with(folder.path(), settings))
        .collect();
    let request = Request::new("a cat").seed(5);
    let alone: Vec<_> =
        bundles.iter().map(|bundle| draw(&mut pipeline(bundle, backend.clone()), &request).latents).collect();
    assert_ne!(alone[0], alone[1]);

    let pool = Pool::new();
    for (bundle, alone) in bundles.iter().zip(&alone) {
        let builder = Pipeline::builder(bundle.clone()).backend(backend.clone()).architecture(ToyFlow);
        let mut pooled = builder.pool(&pool).build().expect("a pipeline");
        assert_eq!(draw(&mut pooled, &request).latents, *alone);
    }
}

#[test]
fn what_it_takes_is_measured_and_planned_like_any_other() {
    let folder = scratch();
    let bundle = bundle::write(folder.path());
    let [backend, _] = backends();
    let mut pipeline = pipeline(&bundle, backend);
    let figures = pipeline.measure(&mut |_| {}).expect("figures").expect("Linux");
    let names: Vec<_> = figures.components.keys().copied().collect();
    assert_eq!(names, [EMBEDDER, DECODER, TRANSFORMER]);
    let plan = pipeline.plan(&Request::new("a cat"), &figures).expect("a plan");
    assert!(plan.within(1 << 40).is_ok(), "{plan:?}");
}

#[test]
fn an_architecture_that_nobody_registered_is_refused_by_name() {
    let folder = scratch();
    let bundle = bundle::write(folder.path());
    let [backend, _] = backends();
    let error = Pipeline::builder(bundle).backend(backend).build().expect_err("refused").to_string();
    assert!(
        error.ends_with("is of architecture 'toy-flow', which is not among those of this program"),
        "{error}"
    );
}
