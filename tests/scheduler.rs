//! DDIM against diffusers, and scheduler configurations.

use kiln_runtime::generator::TorchCpuGenerator;
use kiln_runtime::scheduler::{Ddim, SchedulerConfig, SchedulerError};
use ndarray::ArrayD;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{References, assert_relatively_close};

const TOLERANCE: f32 = 1e-5;

#[track_caller]
fn config(value: &Value) -> SchedulerConfig {
    SchedulerConfig::from_json(&value.to_string()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

#[track_caller]
fn ddim(value: &Value) -> Ddim {
    Ddim::new(&config(value))
}

/// The prediction that the references were made with.
fn model(latents: &ArrayD<f32>, timestep: i64) -> ArrayD<f32> {
    let shift = 0.01 * (timestep as f32).sin();
    latents.mapv(|x| 0.3 * x + shift)
}

#[track_caller]
fn check_trajectory(references: &References, case: &str, ddim: &Ddim, timesteps: &[i64], eta: f32) {
    let mut latents = references.f32(&format!("{case}.init")) * ddim.init_noise_sigma();
    let mut generator = TorchCpuGenerator::new(1);
    for (i, &timestep) in timesteps.iter().enumerate() {
        let noise = (eta > 0.0).then(|| generator.randn(latents.shape()));
        let output = model(&latents, timestep);
        ddim.step(&output, timestep, timesteps.len(), &mut latents, eta, noise.as_ref()).expect(case);
        let expected = references.f32(&format!("{case}.step{i:02}"));
        assert_relatively_close(&format!("{case} step {i}"), latents.view(), expected.view(), TOLERANCE);
    }
}

#[test]
fn trajectories_are_diffusers() {
    let references = References::open("schedulers.safetensors");
    for case in ["00.DDIMScheduler", "01.DDIMScheduler", "02.DDIMScheduler"] {
        let mut options = references.metadata(case);
        let map = options.as_object_mut().expect("a map");
        let steps = map.remove("steps").and_then(|n| n.as_u64()).expect("steps") as usize;
        map.remove("seed");
        let ddim = ddim(&options);
        let timesteps = ddim.timesteps(steps).expect(case);
        let expected = references.f32(&format!("{case}.timesteps"));
        assert_eq!(timesteps, expected.iter().map(|&t| t as i64).collect::<Vec<_>>(), "{case}");
        check_trajectory(&references, case, &ddim, &timesteps, 0.0);
    }
}

#[test]
fn every_option_means_what_it_means_in_diffusers() {
    let references = References::open("ddim.safetensors");
    let cases = [
        "eta",
        "eta_v",
        "sample",
        "linear",
        "cosine",
        "linspace",
        "trained",
        "dynamic",
        "dynamic_low",
        "clip",
        "snr_leading",
        "one_step",
        "odd_train",
    ];
    for case in cases {
        let call = references.metadata(case);
        let ddim = ddim(&call["config"]);
        let steps = call["steps"].as_u64().expect("steps") as usize;
        let timesteps = ddim.timesteps(steps).expect(case);
        assert_eq!(timesteps, references.i64(&format!("{case}.timesteps")), "{case}");
        check_trajectory(&references, case, &ddim, &timesteps, call["eta"].as_f64().expect("eta") as f32);

        let init = references.f32(&format!("{case}.init"));
        let noise = TorchCpuGenerator::new(2).randn(init.shape());
        let noised = ddim.add_noise(&init, &noise, timesteps[steps / 2]).expect(case);
        assert_relatively_close(
            case,
            noised.view(),
            references.f32(&format!("{case}.noised")).view(),
            TOLERANCE,
        );
    }
}

#[test]
fn a_number_of_steps_outside_the_schedule_is_refused() {
    let ddim = ddim(&json!({ "num_train_timesteps": 50 }));
    for steps in [0, 51, usize::MAX] {
        assert_eq!(ddim.timesteps(steps), Err(SchedulerError::Steps { steps, max: 50 }));
    }
}

#[test]
fn an_offset_past_the_last_timestep_is_refused() {
    let ddim = ddim(&json!({ "num_train_timesteps": 50, "steps_offset": 1 }));
    let refused = ddim.timesteps(50).expect_err("timestep 50 of 0 to 49").to_string();
    assert!(refused.contains("50") && refused.contains("steps_offset 1"), "{refused}");
}

#[track_caller]
fn check_refused(value: Value, parts: &[&str]) {
    let error = SchedulerConfig::from_json(&value.to_string()).expect_err("a refusal").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{value}: {error}");
}

#[test]
fn refusals_name_the_key_and_the_value() {
    check_refused(json!({ "beta_schedule": "sigmoid" }), &["beta_schedule", "sigmoid"]);
    check_refused(json!({ "prediction_type": "flow_prediction" }), &["prediction_type", "flow_prediction"]);
    check_refused(json!({ "timestep_spacing": "random" }), &["timestep_spacing", "random"]);
    check_refused(json!({ "num_train_timesteps": 0 }), &["num_train_timesteps", "0"]);
    check_refused(json!({ "num_train_timesteps": 100_001 }), &["num_train_timesteps", "100001"]);
    check_refused(json!({ "num_train_timesteps": -1 }), &["num_train_timesteps", "-1"]);
    check_refused(json!({ "num_train_timesteps": 10.5 }), &["num_train_timesteps", "10.5"]);
    check_refused(json!({ "trained_betas": [0.1, 0.2] }), &["trained_betas", "1000"]);
    check_refused(json!({ "steps_offset": -1 }), &["steps_offset", "-1"]);
    check_refused(json!({ "clip_sample_range": -1.0 }), &["clip_sample_range", "-1"]);
    check_refused(json!({ "set_alpha_to_one": "yes" }), &["set_alpha_to_one", "yes"]);
    check_refused(json!({ "beta_stat": 0.1 }), &["beta_stat", "0.1"]);
    check_refused(json!([]), &["object"]);
}

#[test]
fn betas_that_leave_the_range_of_numbers_are_refused() {
    check_refused(json!({ "beta_start": -1.0 }), &["beta_start", "-1"]);
    check_refused(json!({ "beta_end": 5.0 }), &["beta_end", "5"]);
    check_refused(json!({ "beta_end": 1e300 }), &["beta_end", "1e"]);
    check_refused(json!({ "num_train_timesteps": 2, "trained_betas": [0.5, 1.5] }), &["trained_betas", "1.5"]);
    check_refused(json!({ "sample_max_value": 1e300 }), &["sample_max_value", "1e"]);
    for number in ["NaN", "-Infinity", "Infinity"] {
        let text = format!(r#"{{ "beta_end": {number} }}"#);
        let error = SchedulerConfig::from_json(&text).expect_err("a refusal").to_string();
        assert!(error.contains("beta_end") && error.contains(number), "{error}");
    }
}

#[test]
fn files_of_other_schedulers_are_read() {
    for text in [
        r#"{ "_class_name": "DPMSolverMultistepScheduler", "flow_shift": 1.0, "lambda_min_clipped": -Infinity,
             "time_shift_type": "exponential", "use_dynamic_shifting": false, "use_flow_sigmas": false,
             "variance_type": null }"#,
        r#"{ "_class_name": "DDPMScheduler", "variance_type": "fixed_small" }"#,
        r#"{ "_note": "a \"quoted\" NaN, Infinity", "trained_betas": null }"#,
    ] {
        SchedulerConfig::from_json(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    }
}

/// `numpy.arange` counts with a rounded difference: 937.5 becomes 937.4999... and 61 steps become 62, one of them -1.
#[test]
fn trailing_timesteps_round_as_numpy() {
    let ddim = ddim(&json!({ "timestep_spacing": "trailing" }));
    assert_eq!(ddim.timesteps(48).expect("48 steps")[..4], [999, 978, 957, 936]);
    let timesteps = ddim.timesteps(61).expect("61 steps");
    assert_eq!((timesteps.len(), timesteps[60]), (61, 15));
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let ddim = ddim(&json!({}));
    let output = TorchCpuGenerator::new(0).randn(&[1, 4, 2, 2]);
    let other = TorchCpuGenerator::new(0).randn(&[1, 4, 2, 3]);
    let step = |output: &ArrayD<f32>, timestep, n_steps, eta, noise: Option<&ArrayD<f32>>| {
        let mut latents = TorchCpuGenerator::new(1).randn(&[1, 4, 2, 2]);
        ddim.step(output, timestep, n_steps, &mut latents, eta, noise).expect_err("a refusal").to_string()
    };
    assert!(step(&output, 1000, 4, 0.0, None).contains("timestep: 1000"));
    assert!(step(&output, -1, 4, 0.0, None).contains("timestep: -1"));
    assert!(step(&output, 1, 0, 0.0, None).contains("steps: 0"));
    assert!(step(&output, 1, 4, 0.5, None).contains("eta: 0.5"));
    assert!(step(&output, 1, 4, f32::NAN, None).contains("eta: NaN"));
    assert!(step(&other, 1, 4, 0.0, None).contains("[1, 4, 2, 3]"));
    assert!(step(&output, 1, 4, 1.0, Some(&other)).contains("noise"));
    assert!(ddim.add_noise(&output, &output, 5000).is_err());
}

#[test]
fn another_class_is_read_as_ddim() {
    let pndm = config(&json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "clip_sample": false,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
    }));
    assert_eq!(pndm.class, "PNDMScheduler");
    let timesteps = Ddim::new(&pndm).timesteps(3).expect("three steps");
    assert_eq!(timesteps, [667, 334, 1]);
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

fn any_config() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "_class_name",
        "beta_end",
        "beta_schedule",
        "beta_start",
        "clip_sample",
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr",
        "sample_max_value",
        "set_alpha_to_one",
        "skip_prk_steps",
        "steps_offset",
        "thresholding",
        "timestep_spacing",
        "trained_betas",
        "unheard_of",
    ]);
    prop::collection::vec((keys, any_json()), 0..4)
        .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(key, value)| (key.into(), value)).collect()))
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = SchedulerConfig::from_json(&text);
    }

    #[test]
    fn any_config_is_read_or_refused(value in any_config()) {
        if let Ok(config) = SchedulerConfig::from_json(&value.to_string()) {
            let _ = Ddim::new(&config).timesteps(10);
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
        if let Ok(timesteps) = ddim(&value).timesteps(steps) {
            prop_assert_eq!(timesteps.len(), steps);
            prop_assert!(timesteps.windows(2).all(|pair| pair[0] > pair[1]));
            prop_assert!(timesteps.iter().all(|t| (0..trained as i64).contains(t)));
        }
    }
}
