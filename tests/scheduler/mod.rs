//! Samplers against diffusers, and scheduler configurations.

mod command;
mod linear;
mod pictures;
mod settings;

use kiln_runtime::generator::TorchCpuGenerator;
use kiln_runtime::scheduler::{
    Correction, Sampler, SamplerOptions, SchedulerClass, SchedulerConfig, SchedulerError,
};
use ndarray::{ArrayD, Axis, arr1, concatenate};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{References, assert_relatively_close};

const TOLERANCE: f32 = 1e-5;

#[track_caller]
fn config(value: &Value) -> SchedulerConfig {
    SchedulerConfig::from_json(&value.to_string()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

#[track_caller]
fn sampler(value: &Value, n_steps: usize) -> Sampler {
    let sampler = config(value).sampler(n_steps, &SamplerOptions::default());
    sampler.unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// What stood for the UNet when the references were made; a variance is in channels of its own.
fn model(input: &ArrayD<f32>, timestep: f32, has_variance: bool) -> ArrayD<f32> {
    let shift = 0.01 * timestep.sin();
    let epsilon = input.mapv(|x| 0.3 * x + shift);
    match has_variance {
        false => epsilon,
        true => concatenate![Axis(1), epsilon, input.mapv(|x| 0.02 + 0.01 * x * x)],
    }
}

/// Latents after each call from `start` on, with noise from `seed`.
fn trajectory(sampler: &mut Sampler, start: usize, mut latents: ArrayD<f32>, seed: u64) -> Vec<ArrayD<f32>> {
    let mut generator = TorchCpuGenerator::new(seed);
    sampler.start_at(start).expect("a first call");
    let timesteps = sampler.timesteps().to_vec();
    let mut steps = Vec::new();
    for (i, &timestep) in timesteps.iter().enumerate().skip(start) {
        let output = model(&sampler.scale_model_input(i, &latents), timestep, sampler.takes_variance());
        sampler.step(i, &output, &mut latents, &mut |shape| generator.randn(shape)).expect("a step");
        steps.push(latents.clone());
    }
    steps
}

fn randn(shape: &[usize], seed: u64) -> ArrayD<f32> {
    TorchCpuGenerator::new(seed).randn(shape)
}

#[test]
fn trajectories_are_diffusers() {
    let references = References::open("schedulers.safetensors");
    let cases: Vec<String> =
        references.names().iter().filter_map(|name| name.strip_suffix(".init").map(str::to_owned)).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let mut options = references.metadata(&case);
        let map = options.as_object_mut().expect("a map");
        let steps = map.remove("steps").and_then(|n| n.as_u64()).expect("steps") as usize;
        let seed = map.remove("seed").and_then(|n| n.as_u64()).expect("a seed");
        let (_, class) = case.split_once('.').expect("a number and a class");
        map.insert("_class_name".into(), class.into());
        let mut sampler = sampler(&options, steps);
        let timesteps = references.f32(&format!("{case}.timesteps"));
        assert_relatively_close(&case, arr1(sampler.timesteps()).into_dyn().view(), timesteps.view(), 1e-6);
        let init = references.f32(&format!("{case}.init"));
        for (i, found) in trajectory(&mut sampler, 0, init, seed + 1).iter().enumerate() {
            let expected = references.f32(&format!("{case}.step{i:02}"));
            assert_relatively_close(&format!("{case} step {i}"), found.view(), expected.view(), TOLERANCE);
        }
    }
}

/// Takes the next `n` numbers.
fn take(numbers: &mut &[f32], n: usize) -> Vec<f32> {
    let (taken, left) = numbers.split_at(n);
    *numbers = left;
    taken.to_vec()
}

/// A run that `samplers.safetensors` has references of.
struct Case {
    sampler: Sampler,
    start: usize,
    shape: Vec<usize>,
}

impl Case {
    #[track_caller]
    fn new(case: &Value) -> Case {
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        let n_steps = number(&case["steps"]).expect("steps");
        let options = SamplerOptions {
            eta: case["eta"].as_f64().unwrap_or(0.0) as f32,
            original_inference_steps: number(&case["lcm"]["original_inference_steps"]),
            strength: case["lcm"]["strength"].as_f64().unwrap_or(1.0),
        };
        let mut config = config(&case["config"]);
        if let Some(name) = case["scheduler"].as_str() {
            config = config.corrected(Correction::StableDiffusion).with_scheduler(name).expect("a scheduler");
        }
        Case {
            sampler: config.sampler(n_steps, &options).unwrap_or_else(|e| panic!("{case}: {e}")),
            start: number(&case["start"]).unwrap_or(0),
            shape: case["shape"].as_array().expect("shape").iter().filter_map(number).collect(),
        }
    }
}

#[test]
fn every_option_of_every_sampler_means_what_it_means_in_diffusers() {
    let references = References::open("samplers.safetensors");
    let [timesteps, noised, steps] = ["timesteps", "noised", "steps"].map(|name| references.f32(name));
    let mut timesteps = timesteps.as_slice().expect("contiguous");
    let mut noised = noised.as_slice().expect("contiguous");
    let mut steps = steps.as_slice().expect("contiguous");
    let mut failures = Vec::new();
    for case in references.metadata("cases").as_array().expect("a list") {
        let Case { mut sampler, start, shape } = Case::new(case);

        let found = sampler.timesteps();
        let expected = take(&mut timesteps, found.len());
        if found.iter().zip(&expected).any(|(found, expected)| (found - expected).abs() > 1e-3) {
            failures.push(format!("{case}: timesteps {found:?}, not {expected:?}"));
        }
        let n: usize = shape.iter().product();
        let mut check = |what: &str, found: &ArrayD<f32>, expected: Vec<f32>| {
            let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.0));
            let worst = errors.fold(0.0, |worst: f32, error| if error <= worst { worst } else { error });
            if worst.is_nan() || worst > TOLERANCE {
                failures.push(format!("{case}: {what} is {worst:e} off"));
            }
        };
        let (init, noise) = (randn(&shape, 0), randn(&shape, 2));
        let mixed = sampler.add_noise(start, &init, &noise).expect("noised latents");
        check("add_noise", &mixed, take(&mut noised, n));
        let init = if start > 0 { mixed } else { init * sampler.init_noise_sigma() };
        for (i, found) in trajectory(&mut sampler, start, init, 1).iter().enumerate() {
            check(&format!("call {i}"), found, take(&mut steps, n));
        }
    }
    assert!(timesteps.is_empty() && noised.is_empty() && steps.is_empty(), "numbers are left");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn plms_is_pndm_without_a_runge_kutta_start() {
    let references = References::open("samplers.safetensors");
    let cases = references.metadata("cases");
    let skips = |case: &&Value| {
        let config = &case["config"];
        case["scheduler"].is_null()
            && config["_class_name"] == "PNDMScheduler"
            && config["skip_prk_steps"] == true
    };
    let mut n_cases = 0;
    for case in cases.as_array().expect("a list").iter().filter(skips) {
        let mut named = case.clone();
        named["config"].as_object_mut().expect("a map").remove("skip_prk_steps");
        named["scheduler"] = "plms".into();
        // What the first of the two draws is what diffusers does, see above.
        let [expected, found] = [case, &named].map(|case| {
            let Case { mut sampler, start, shape } = Case::new(case);
            trajectory(&mut sampler, start, randn(&shape, 0), 1)
        });
        assert_eq!(found, expected, "{case}");
        n_cases += 1;
    }
    assert_eq!(n_cases, 9);
    let own = config(&json!({ "_class_name": "PNDMScheduler" }));
    let calls = |name: &str| {
        let config = own.with_scheduler(name).expect("a scheduler");
        config.sampler(10, &SamplerOptions::default()).expect("a run").timesteps().len()
    };
    assert_eq!((calls("plms"), calls("pndm")), (11, 19));
}

#[test]
fn every_option_of_ddim_means_what_it_means_in_diffusers() {
    let references = References::open("ddim.safetensors");
    let names = references.names();
    let cases: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".init")).collect();
    assert!(!cases.is_empty());
    for case in cases {
        let call = references.metadata(case);
        let config = config(&call["config"]);
        let steps = call["steps"].as_u64().expect("steps") as usize;
        let eta = call["eta"].as_f64().expect("eta") as f32;
        let mut sampler =
            config.sampler(steps, &SamplerOptions { eta, ..SamplerOptions::default() }).expect(case);
        let timesteps: Vec<i64> = sampler.timesteps().iter().map(|&t| t as i64).collect();
        assert_eq!(timesteps, references.i64(&format!("{case}.timesteps")), "{case}");
        let alphas = arr1(&config.alphas_cumprod()).into_dyn();
        let expected = references.f32(&format!("{case}.alphas_cumprod"));
        // torch's square root of a whole array is not always rounded to nearest.
        let tolerance = if call["config"]["rescale_betas_zero_snr"] == true { 1e-6 } else { 0.0 };
        assert_relatively_close(case, alphas.view(), expected.view(), tolerance);

        let init = references.f32(&format!("{case}.init"));
        let noised = sampler.add_noise(steps / 2, &init, &randn(init.shape(), 2)).expect(case);
        let expected = references.f32(&format!("{case}.noised"));
        assert_relatively_close(case, noised.view(), expected.view(), TOLERANCE);
        for (i, found) in trajectory(&mut sampler, 0, init, 1).iter().enumerate() {
            let expected = references.f32(&format!("{case}.step{i:02}"));
            assert_relatively_close(&format!("{case} step {i}"), found.view(), expected.view(), TOLERANCE);
        }
    }
}

#[test]
fn a_number_of_steps_outside_the_schedule_is_refused() {
    let config = config(&json!({ "num_train_timesteps": 50 }));
    for steps in [0, 51, usize::MAX] {
        let error = config.sampler(steps, &SamplerOptions::default()).err();
        assert_eq!(error, Some(SchedulerError::Steps { steps, min: 1, max: 50 }));
    }
    check_run_refused(json!({ "_class_name": "PNDMScheduler" }), 3, &["steps: 3", "from 4 to 1000"]);
    check_run_refused(json!({ "_class_name": "LCMScheduler" }), 51, &["steps: 51", "from 1 to 50"]);
}

#[test]
fn an_offset_past_the_last_timestep_is_refused() {
    for class in ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"] {
        let value = json!({
            "_class_name": class, "num_train_timesteps": 50, "steps_offset": 1, "timestep_spacing": "leading",
            "skip_prk_steps": true,
        });
        check_run_refused(value, 50, &["timestep 50 of 50", "steps_offset 1"]);
    }
}

#[track_caller]
fn check_run_refused(value: Value, steps: usize, parts: &[&str]) {
    let started =
        config(&value).sampler(steps, &SamplerOptions::default()).and_then(|mut sampler| sampler.start_at(0));
    let error = started.expect_err("a refusal").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{value}: {error}");
}

/// diffusers runs these and answers with NaN.
#[test]
fn runs_that_divide_by_zero_are_refused_before_they_start() {
    let zero_snr =
        json!({ "timestep_spacing": "trailing", "rescale_betas_zero_snr": true, "clip_sample": false });
    check_run_refused(zero_snr, 10, &["DDIMScheduler", "timestep 999"]);
    let bh1 = json!({ "_class_name": "UniPCMultistepScheduler", "solver_type": "bh1" });
    check_run_refused(bh1, 4, &["UniPCMultistepScheduler", "4 steps"]);
    let log = json!({ "_class_name": "DDPMScheduler", "variance_type": "fixed_large_log" });
    check_run_refused(log, 4, &["DDPMScheduler"]);
}

#[test]
fn keys_of_other_classes_have_no_influence() {
    let plain = json!({ "_class_name": "EulerAncestralDiscreteScheduler" });
    let full = json!({
        "_class_name": "EulerAncestralDiscreteScheduler", "_diffusers_version": "0.42.1", "use_karras_sigmas": true,
        "thresholding": true, "solver_order": 3, "final_sigmas_type": "sigma_min", "algorithm_type": "anything",
    });
    let run = |value: &Value| trajectory(&mut sampler(value, 5), 0, randn(&[1, 4, 2, 2], 0), 1);
    assert_eq!(run(&plain), run(&full));
}

/// `numpy.arange` counts with a rounded difference: 937.5 becomes 937.4999... and 61 steps become 62, one of them -1.
#[test]
fn trailing_timesteps_round_as_numpy() {
    let value = json!({ "timestep_spacing": "trailing" });
    assert_eq!(sampler(&value, 48).timesteps()[..4], [999.0, 978.0, 957.0, 936.0]);
    let sampler = sampler(&value, 61);
    assert_eq!((sampler.timesteps().len(), sampler.timesteps()[60]), (61, 15.0));
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let (right, wrong) = (randn(&[1, 4, 2, 2], 0), randn(&[1, 4, 2, 3], 0));
    let mut sampler = sampler(&json!({ "_class_name": "EulerAncestralDiscreteScheduler" }), 4);
    let mut refusal = |call, output: &ArrayD<f32>, noise: &ArrayD<f32>| {
        let mut latents = right.clone();
        let refusal = sampler.step(call, output, &mut latents, &mut |_| noise.clone()).err();
        assert_eq!(latents, right, "latents keep their value");
        refusal.map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(refusal(1, &right, &right).contains("model call 1 of 4: call 0 is due"));
    assert!(refusal(0, &wrong, &right).contains("model output: shape [1, 4, 2, 3]"));
    assert!(refusal(0, &right, &wrong).contains("noise: shape [1, 4, 2, 3]"));
    assert!(sampler.add_noise(0, &right, &wrong).is_err());
    assert!(sampler.add_noise(4, &right, &right).is_err());
    assert!(sampler.start_at(4).is_err());
    for eta in [-0.1, 1.5, f32::NAN] {
        let error = config(&json!({})).sampler(4, &SamplerOptions { eta, ..SamplerOptions::default() }).err();
        assert!(error.is_some_and(|error| error.to_string().starts_with("eta: ")));
    }
    let lcm = config(&json!({ "_class_name": "LCMScheduler" }));
    let options = SamplerOptions { original_inference_steps: Some(1 << 60), ..SamplerOptions::default() };
    assert!(lcm.sampler(4, &options).err().is_some_and(|e| e.to_string().contains("original_inference_steps")));
    let options = SamplerOptions { strength: 2.0, ..SamplerOptions::default() };
    assert!(lcm.sampler(4, &options).err().is_some_and(|e| e.to_string().contains("strength: 2")));
}

#[test]
fn a_run_can_be_started_again() {
    for name in SchedulerClass::names() {
        let mut sampler = sampler(&json!({ "_class_name": name }), 7);
        let init = randn(&[1, 4, 2, 2], 0);
        let whole = trajectory(&mut sampler, 0, init.clone(), 1);
        assert_eq!(trajectory(&mut sampler, 0, init, 1), whole, "{name}");
    }
}

#[test]
fn only_stochastic_samplers_draw_noise() {
    let draws = |name: &str| {
        let config = config(&json!({})).with_scheduler(name).expect(name);
        let mut sampler = config.sampler(6, &SamplerOptions::default()).expect(name);
        let (mut latents, mut n) = (randn(&[1, 4, 2, 2], 0), 0);
        for i in 0..sampler.timesteps().len() {
            let output = sampler.scale_model_input(i, &latents).into_owned();
            let mut draw = |shape: &[usize]| {
                n += 1;
                randn(shape, n)
            };
            sampler.step(i, &output, &mut latents, &mut draw).expect(name);
        }
        n
    };
    for name in [
        "ddim",
        "pndm",
        "euler",
        "heun",
        "lms",
        "kdpm2",
        "dpm++2m",
        "dpm++2s",
        "unipc",
        "deis",
        "tcd",
        "edm-euler",
    ] {
        assert_eq!(draws(name), 0, "{name}");
    }
    // KDPM2 ends before the second half of its last step, DDPM and LCM without noise.
    let stochastic =
        [("ddpm", 5), ("euler-a", 6), ("kdpm2-a", 5), ("dpm++2m-sde", 6), ("lcm", 5), ("sa-solver", 6)];
    for (name, n) in stochastic {
        assert_eq!(draws(name), n, "{name}");
    }
}

#[test]
fn img2img_starts_at_a_step() {
    let euler = sampler(&json!({ "_class_name": "EulerDiscreteScheduler" }), 10);
    let starts = [1.0, 0.7, 0.3, 0.05, 0.0].map(|strength| euler.img2img_start(strength));
    assert_eq!(starts, [0, 3, 7, 10, 10]);
    let heun = sampler(&json!({ "_class_name": "HeunDiscreteScheduler" }), 10);
    assert_eq!((heun.order(), heun.img2img_start(0.7)), (2, 6));
}

#[test]
fn schedulers_are_named_as_their_class_or_for_short() {
    let ddim = config(&json!({ "beta_end": 0.012 }));
    for name in SchedulerClass::short_names().chain(SchedulerClass::names()) {
        let other = ddim.with_scheduler(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(SchedulerClass::from_name(other.class().name()), Some(other.class()));
        let started = other.sampler(4, &SamplerOptions::default()).and_then(|mut sampler| sampler.start_at(0));
        started.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!(ddim.with_scheduler("dpm++2m").expect("a scheduler").class(), SchedulerClass::DpmMultistep);
    let refused = |name: &str| ddim.with_scheduler(name).expect_err("a refusal").to_string();
    assert!(refused("dpm++3m").contains("'dpm++3m'") && refused("dpm++3m").contains("dpm++2m-sde"));
    assert!(refused("euler-a:karras").contains("EulerAncestralDiscreteScheduler"));
    assert!(refused("euler:cosine").contains("karras, exponential or beta"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z_]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
}

/// A key with a value that it may have, or with anything.
fn any_entry() -> impl Strategy<Value = (String, Value)> {
    const CHOICES: [(&str, &[&str]); 10] = [
        ("beta_schedule", &["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"]),
        ("prediction_type", &["epsilon", "sample", "v_prediction"]),
        ("timestep_spacing", &["linspace", "leading", "trailing"]),
        ("final_sigmas_type", &["zero", "sigma_min"]),
        ("interpolation_type", &["linear", "log_linear"]),
        ("timestep_type", &["discrete", "continuous"]),
        (
            "algorithm_type",
            &["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "noise_prediction"],
        ),
        ("sigma_schedule", &["karras", "exponential"]),
        ("solver_type", &["midpoint", "heun", "bh1", "bh2"]),
        ("variance_type", &["fixed_small", "fixed_large", "learned", "learned_range"]),
    ];
    const SWITCHES: [&str; 14] = [
        "clip_sample",
        "euler_at_final",
        "lower_order_final",
        "predict_x0",
        "rescale_betas_zero_snr",
        "set_alpha_to_one",
        "skip_prk_steps",
        "thresholding",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    ];
    const NUMBERS: [(&str, i64); 12] = [
        ("predictor_order", 5),
        ("corrector_order", 5),
        ("sigma_data", 2),
        ("rho", 9),
        ("num_train_timesteps", 1200),
        ("original_inference_steps", 60),
        ("solver_order", 4),
        ("steps_offset", 3),
        ("lambda_min_clipped", 2),
        ("sigma_min", 5),
        ("sigma_max", 30),
        ("timestep_scaling", 20),
    ];
    let keys = CHOICES.iter().map(|(key, _)| *key).chain(SWITCHES).chain(NUMBERS.map(|(key, _)| key));
    let keys: Vec<&str> = keys.chain(["trained_betas", "disable_corrector", "unheard_of"]).collect();
    let named = |(key, value): (&str, Value)| (key.to_owned(), value);
    prop_oneof![
        8 => prop::sample::select(&CHOICES[..]).prop_flat_map(|(key, values)| {
            prop::sample::select(values).prop_map(move |value| (key.to_owned(), value.into()))
        }),
        8 => (prop::sample::select(&SWITCHES[..]), any::<bool>()).prop_map(|(key, on)| (key.to_owned(), on.into())),
        4 => prop::sample::select(&NUMBERS[..])
            .prop_flat_map(|(key, max)| (-1..max).prop_map(move |n| (key.to_owned(), n.into()))),
        1 => (prop::sample::select(keys), any_json()).prop_map(named),
    ]
}

fn any_config() -> impl Strategy<Value = Value> {
    let class = prop::sample::select(SchedulerClass::names().collect::<Vec<_>>());
    (class, prop::collection::vec(any_entry(), 0..6)).prop_map(|(class, entries)| {
        let class = ("_class_name".to_owned(), class.into());
        Value::Object([class].into_iter().chain(entries).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = SchedulerConfig::from_json(&text);
    }

    #[test]
    fn any_scheduler_is_found_or_refused(name in "[a-z+0-9:-]{0,16}") {
        let _ = config(&json!({})).with_scheduler(&name);
    }

    #[test]
    fn any_config_is_run_or_refused(value in any_config(), steps in 1usize..40, start in 0usize..40) {
        let Ok(config) = SchedulerConfig::from_json(&value.to_string()) else { return Ok(()) };
        let trained = config.num_train_timesteps() as f32;
        let corrected = config.corrected(Correction::StableDiffusion);
        let Ok(mut sampler) = corrected.sampler(steps, &SamplerOptions::default()) else {
            return Ok(());
        };
        let is_edm = matches!(config.class(), SchedulerClass::EdmEuler | SchedulerClass::EdmDpmMultistep);
        if value.get("timestep_type") != Some(&json!("continuous")) && !is_edm {
            prop_assert!(sampler.timesteps().iter().all(|t| (0.0..trained).contains(t)), "{:?}", sampler.timesteps());
        }
        let start = start % sampler.timesteps().len() / sampler.order() * sampler.order();
        if sampler.start_at(start).is_err() {
            return Ok(());
        }
        for latents in trajectory(&mut sampler, start, randn(&[1, 3, 1, 2], 0), 1) {
            prop_assert_eq!(latents.shape(), &[1, 3, 1, 2]);
        }
    }

    #[test]
    fn timesteps_fall_and_stay_in_range(
        trained in 1usize..2000,
        steps in 1usize..2000,
        offset in 0usize..3,
        spacing in prop::sample::select(vec!["leading", "trailing", "linspace"]),
    ) {
        let offset = offset.min(trained - 1);
        let value = json!({
            "num_train_timesteps": trained, "steps_offset": offset, "timestep_spacing": spacing,
        });
        if let Ok(sampler) = config(&value).sampler(steps, &SamplerOptions::default()) {
            let timesteps = sampler.timesteps();
            prop_assert_eq!(timesteps.len(), steps);
            prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert!(timesteps.iter().all(|t| (0.0..trained as f32).contains(t)));
        }
    }
}
