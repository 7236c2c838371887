//! Keys and numbers of configurations.

use serde_json::{Value, json};

use super::{draw, model};
use crate::fixtures::edit_json;

#[track_caller]
fn remarks_of(file: &str, change: impl FnOnce(&mut Value)) -> Result<Vec<String>, String> {
    let folder = model();
    edit_json(&folder.path().join(file), change);
    let checkpoint = kiln_compile::Checkpoint::open(folder.path());
    checkpoint.map(|checkpoint| checkpoint.remarks()).map_err(|e| e.to_string())
}

#[test]
fn keys_that_a_class_does_not_have_change_nothing_and_are_told() {
    let folder = model();
    for file in ["unet/config.json", "vae/config.json", "text_encoder/config.json"] {
        edit_json(&folder.path().join(file), |config| config["decay"] = 0.9999.into());
    }
    assert_eq!(draw(folder.path()), draw(model().path()));
    let remarks = kiln_compile::Checkpoint::open(folder.path()).expect("a checkpoint").remarks();
    assert_eq!(remarks.len(), 3, "{remarks:?}");
    assert!(remarks.iter().all(|remark| remark.contains(" has no decay, passed over")), "{remarks:?}");
}

#[test]
fn keys_that_change_the_network_stay_refused() {
    for (key, value) in [("dual_cross_attention", json!(true)), ("class_embed_type", json!("timestep"))] {
        let error = remarks_of("unet/config.json", |config| config[key] = value).expect_err("a refusal");
        assert!(error.contains(key), "{error}");
    }
    let quantised = |config: &mut Value| config["quantization_config"] = json!({ "bits": 4 });
    for file in ["unet/config.json", "vae/config.json", "text_encoder/config.json"] {
        assert!(remarks_of(file, quantised).expect_err("a refusal").contains("quantization_config"));
    }
}

#[test]
fn values_of_keys_that_were_left_at_their_default_count_for_nothing() {
    let folder = model();
    edit_json(&folder.path().join("unet/config.json"), |config| {
        config["dual_cross_attention"] = true.into();
        config["_use_default_values"] = json!(["dual_cross_attention"]);
    });
    assert_eq!(draw(folder.path()), draw(model().path()));
}

#[test]
fn numbers_have_to_fit_into_single_precision() {
    for (file, key, value) in [
        ("vae/config.json", "scaling_factor", 1e308),
        ("vae/config.json", "scaling_factor", 1e-320),
        ("unet/config.json", "norm_eps", 1e300),
        ("text_encoder/config.json", "layer_norm_eps", 1e39),
    ] {
        let error = remarks_of(file, |config| config[key] = value.into()).expect_err("a refusal");
        assert!(error.contains(&format!("{key}: ")) && error.ends_with("finite number in 32 bits"), "{error}");
    }
}

#[test]
fn old_sample_sizes_are_corrected_where_diffusers_corrects_them() {
    let sizes = |change: &dyn Fn(&mut Value)| {
        let folder = model();
        edit_json(&folder.path().join("unet/config.json"), |config| change(config));
        kiln_compile::Checkpoint::open(folder.path()).expect("a checkpoint").default_size()
    };
    let with = |version: Value, size: Value| {
        sizes(&|config: &mut Value| {
            config["_diffusers_version"] = version.clone();
            config["sample_size"] = size.clone();
        })
    };
    let factor = with("0.10.0".into(), 32.into())[0] / 32;
    let in_latents = |size: [u64; 2]| size.map(|side| side / factor);
    assert_eq!(in_latents(with("0.6.0.dev0".into(), 32.into())), [64, 64]);
    assert_eq!(in_latents(with("0.9.0".into(), 32.into())), [32, 32]);
    assert_eq!(in_latents(with("0.6.0".into(), 96.into())), [96, 96]);
    assert_eq!(in_latents(with("0.6.0".into(), json!([32, 48]))), [32, 48]);
    assert_eq!(in_latents(with(Value::Null, 32.into())), [32, 32]);
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let folder = model();
    for file in ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"] {
        let path = folder.path().join(file);
        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, format!("\u{feff}{text}")).expect("a file");
    }
    assert_eq!(draw(folder.path()), draw(model().path()));
}
