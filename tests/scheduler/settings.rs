//! Scheduler configurations: what is read, ignored and refused, and which class reads it.

use kiln_runtime::scheduler::{
    Correction, SamplerOptions, SchedulerClass, SchedulerConfig, SchedulerError, SchedulerSettings,
};
use serde_json::{Value, json};

use super::{config, randn, sampler, trajectory};

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
    check_refused(json!([]), &["object"]);
}

#[test]
fn an_unknown_class_is_refused_with_those_that_are_known() {
    let names: Vec<&str> = SchedulerClass::names().collect();
    assert_eq!(names.len(), 22);
    let value = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" });
    check_refused(value, &[&["_class_name", "FlowMatchEulerDiscreteScheduler"], names.as_slice()].concat());
    check_refused(json!({ "_class_name": 3 }), &["_class_name", "3"]);
    check_refused(json!({ "_class_name": "UnCLIPScheduler" }), &["'UnCLIPScheduler' is for unCLIP"]);
    check_refused(json!({ "_class_name": "DPMSolverSDEScheduler" }), &["'DPMSolverSDEScheduler' draws noise"]);
    check_refused(
        json!({ "_class_name": "Two\nLines\u{1b}[2J" }),
        &[r"'Two\nLines\u{1b}[2J' is not supported"],
    );
    check_refused(json!({ "_class_name": "FlaxDDIMScheduler" }), &["'FlaxDDIMScheduler' is not supported"]);
    check_refused(json!({ "_class_name": ["own", "OwnScheduler"] }), &["OwnScheduler"]);
}

#[test]
fn what_a_class_cannot_do_is_refused_by_key() {
    let of = |class: &str, key: &str, value: Value| json!({ "_class_name": class, key: value });
    let (multistep, unipc) = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler");
    check_refused(of("PNDMScheduler", "prediction_type", json!("sample")), &["prediction_type", "sample"]);
    check_refused(of("DDPMScheduler", "variance_type", json!("huge")), &["variance_type", "huge"]);
    check_refused(of(multistep, "algorithm_type", json!("sgd")), &["algorithm_type", "sgd"]);
    check_refused(of(multistep, "algorithm_type", json!("dpmsolver")), &["final_sigmas_type", "sigma_min"]);
    check_refused(of(multistep, "solver_order", json!(4)), &["solver_order", "4"]);
    check_refused(of(multistep, "use_flow_sigmas", json!(true)), &["use_flow_sigmas", "true"]);
    check_refused(of(multistep, "lambda_min_clipped", json!("low")), &["lambda_min_clipped", "low"]);
    check_refused(of(unipc, "solver_type", json!("bh3")), &["solver_type", "bh3"]);
    check_refused(of(unipc, "disable_corrector", json!([-1])), &["disable_corrector", "-1"]);
    check_refused(of(unipc, "solver_p", json!({})), &["solver_p"]);
    check_refused(of(unipc, "shift_terminal", json!(0.02)), &["shift_terminal", "0.02"]);
    for (class, key, value) in [
        ("DEISMultistepScheduler", "algorithm_type", json!("sde-dpmsolver++")),
        ("DEISMultistepScheduler", "use_flow_sigmas", json!(true)),
        ("DDIMInverseScheduler", "timestep_spacing", json!("linspace")),
        ("SASolverScheduler", "algorithm_type", json!("dpmsolver++")),
        ("SASolverScheduler", "corrector_order", json!(5)),
        ("SASolverScheduler", "predictor_order", json!(0)),
        ("SASolverScheduler", "tau_func", json!("t / 1000")),
        ("SASolverScheduler", "variance_type", json!("learned")),
        ("EDMEulerScheduler", "prediction_type", json!("sample")),
        ("EDMEulerScheduler", "sigma_schedule", json!("beta")),
        ("EDMEulerScheduler", "sigma_min", json!(0.0)),
        ("EDMDPMSolverMultistepScheduler", "algorithm_type", json!("dpmsolver")),
        ("EDMDPMSolverMultistepScheduler", "rho", json!(-1)),
        ("TCDScheduler", "original_inference_steps", json!(1001)),
    ] {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        check_refused(of(class, key, value), &[key, text.trim_end_matches(".0")]);
    }
    check_refused(of("EulerDiscreteScheduler", "sigma_min", json!(0.0)), &["sigma_min", "0"]);
    check_refused(of("EulerDiscreteScheduler", "timestep_type", json!("odd")), &["timestep_type", "odd"]);
    check_refused(of("LCMScheduler", "original_inference_steps", json!(0)), &["original_inference_steps", "0"]);
    let both = json!({ "_class_name": multistep, "use_karras_sigmas": true, "use_beta_sigmas": true });
    check_refused(both, &["use_karras_sigmas", "another"]);
    let third = json!({
        "_class_name": multistep, "algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min",
    });
    check_refused(third, &["solver_order", "3", "sde-dpmsolver"]);
    let singlestep = json!({
        "_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min",
        "thresholding": true,
    });
    check_refused(singlestep, &["thresholding", "dpmsolver"]);
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
fn files_as_diffusers_writes_them_are_read() {
    for (text, class) in [
        (
            r#"{ "_class_name": "DPMSolverMultistepScheduler", "flow_shift": 1.0, "lambda_min_clipped": -Infinity,
                 "time_shift_type": "exponential", "use_dynamic_shifting": false, "use_flow_sigmas": false,
                 "variance_type": null }"#,
            SchedulerClass::DpmMultistep,
        ),
        (r#"{ "_class_name": "DDPMScheduler", "variance_type": "fixed_small" }"#, SchedulerClass::Ddpm),
        (r#"{ "_note": "a \"quoted\" NaN, Infinity", "trained_betas": null }"#, SchedulerClass::Ddim),
    ] {
        let config = SchedulerConfig::from_json(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(config.class(), class, "{text}");
    }
}

fn settings(value: &Value) -> SchedulerSettings {
    SchedulerSettings::from_json(&value.to_string()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// diffusers warns of these and goes on.
#[test]
fn keys_that_no_scheduler_reads_are_ignored_and_told() {
    let plain = json!({ "beta_end": 0.012 });
    let old = json!({
        "beta_end": 0.012, "tensor_format": "pt", "predict_epsilon": true, "s_churn": 0.1, "_note": 1, "rho": 7.0,
        "unheard_of": null,
    });
    let told: Vec<String> = settings(&old).ignored().map(Into::into).collect();
    assert_eq!(told, ["predict_epsilon", "s_churn", "tensor_format", "unheard_of"]);
    assert_eq!(settings(&plain).ignored().count(), 0);
    let run = |value: &Value| trajectory(&mut sampler(value, 5), 0, randn(&[1, 4, 2, 2], 0), 1);
    assert_eq!(run(&plain), run(&old));
    // No class of diffusers reads it any more, whatever it says.
    let noise = json!({ "_class_name": "DDPMScheduler", "predict_epsilon": false });
    assert_eq!(run(&noise), run(&json!({ "_class_name": "DDPMScheduler" })));
}

#[test]
fn the_class_of_the_index_reads_the_settings_of_the_file() {
    let file =
        json!({ "_class_name": "DDIMScheduler", "beta_end": 0.012, "solver_order": 3, "steps_offset": 1 });
    for class in SchedulerClass::names() {
        let of_index = settings(&file).of_class("scheduler", class).config().expect(class);
        let mut own = file.clone();
        own["_class_name"] = class.into();
        let own = config(&own);
        assert_eq!(of_index.class().name(), class);
        let run = |config: &SchedulerConfig| {
            let mut sampler = config.sampler(5, &SamplerOptions::default()).expect(class);
            trajectory(&mut sampler, 0, randn(&[1, 4, 2, 2], 0), 1)
        };
        assert_eq!(run(&of_index), run(&own), "{class}");
    }
    // What does not run matters where it would.
    let elsewhere = json!({ "_class_name": "UnCLIPScheduler" });
    assert!(settings(&elsewhere).of_class("scheduler", "DDIMScheduler").config().is_ok());
    let refused = settings(&file).of_class("scheduler", "UnCLIPScheduler").config().expect_err("a refusal");
    assert!(matches!(&refused, SchedulerError::Class { name, .. } if name == "UnCLIPScheduler"), "{refused}");
    assert!(
        refused.to_string().starts_with("scheduler: 'UnCLIPScheduler' is for unCLIP; supported: "),
        "{refused}"
    );
}

#[test]
fn another_scheduler_takes_over_what_a_class_that_does_not_run_was_given() {
    let file = json!({
        "_class_name": "DPMSolverSDEScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": true,
        "steps_offset": 3, "_use_default_values": ["beta_schedule"],
    });
    let known = json!({ "beta_end": 0.012, "clip_sample": false, "steps_offset": 1 });
    for name in ["euler", "ddim", "dpm++2m:karras", "TCDScheduler"] {
        let found = settings(&file).corrected(Correction::StableDiffusion).with_scheduler(name).expect(name);
        let expected = config(&known).with_scheduler(name).expect(name);
        let run = |config: &SchedulerConfig| {
            let mut sampler = config.sampler(5, &SamplerOptions::default()).expect(name);
            trajectory(&mut sampler, 0, randn(&[1, 4, 2, 2], 0), 1)
        };
        assert_eq!(run(&found), run(&expected), "{name}");
    }
    assert!(settings(&file).with_scheduler("dpm++3m").is_err());
}

/// Numbers are checked where they are used, in single precision.
#[test]
fn numbers_beyond_single_precision_are_refused_by_key() {
    for (class, keys) in [
        ("DDIMScheduler", &["beta_start", "beta_end", "clip_sample_range", "dynamic_thresholding_ratio"][..]),
        ("EulerDiscreteScheduler", &["sigma_min", "sigma_max"]),
        ("DPMSolverMultistepScheduler", &["lambda_min_clipped", "sample_max_value", "sigma_max"]),
        ("EDMEulerScheduler", &["sigma_data", "sigma_min", "sigma_max", "rho"]),
        ("EDMDPMSolverMultistepScheduler", &["sigma_data", "sigma_min", "sigma_max", "rho"]),
        ("LCMScheduler", &["timestep_scaling"]),
        ("DDPMScheduler", &["steps_offset", "num_train_timesteps"]),
    ] {
        for key in keys {
            for number in [1e308, -1e308, 1e39] {
                check_refused(json!({ "_class_name": class, *key: number }), &[key, "1e"]);
            }
        }
    }
}
