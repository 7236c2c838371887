//! Specifications.

use std::fs;

use kiln_bundle::Target;
use kiln_compile::{Bytes, ComputeCapability, OptimizationLevel, Specification, TargetSpec};
use kiln_graph::{ElementType, Precision};
use proptest::prelude::*;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch, tiny};

fn read(text: &str) -> Result<Specification, String> {
    let folder = scratch();
    let path = folder.path().join("model.yaml");
    fs::write(&path, text).expect("a file");
    let prefix = format!("{}: ", path.display());
    Specification::read(&path).map_err(|e| e.to_string().replace(&prefix, ""))
}

#[track_caller]
fn check_refused(text: &str, message: &str) {
    assert_eq!(read(text).expect_err("refused"), message);
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let spec = read(
        r#"
checkpoint: shapes
variant: fp16
loras:
  - {file: a.safetensors}
  - {file: b.safetensors, weight: -0.5}
targets:
  cpu:
    attention: sliced:2
    precision: {storage: f16}
  tensorrt-rtx:
    attention: fused
    precision: {compute: f16, components: {vae_decoder: f32}, keep_f32: [mid_block.attentions]}
    profiles:
      - {batch: {min: 1, opt: 2, max: 4}, height: {min: 256, opt: 512, max: 768}, width: 512}
      - {height: 1024, width: 1024}
    controlnet: true
    compute_capabilities: ["8.9", "12.0"]
    workspace: 1.5GiB
    optimization_level: 5
    tf32: false
    allow_slow_attention: true
"#,
    )
    .expect("a specification");
    assert!(spec.checkpoint.ends_with("shapes") && spec.checkpoint.is_absolute());
    assert_eq!((spec.loras[0].weight, spec.loras[1].weight), (1.0, -0.5));
    let TargetSpec::TensorrtRtx(rtx) = &spec.targets[&Target::TensorrtRtx] else { panic!("of TensorRT-RTX") };
    assert_eq!(rtx.compute_capabilities, [ComputeCapability([8, 9]), ComputeCapability([12, 0])]);
    let engines = &rtx.engines;
    assert_eq!(engines.workspace, Some(Bytes(3 << 29)));
    assert_eq!((engines.profiles.len(), engines.tf32, engines.allow_slow_attention), (2, Some(false), true));
    assert_eq!(engines.optimization_level.map(OptimizationLevel::get), Some(5));
    assert_eq!(
        (engines.networks.precision.compute, engines.networks.controlnet),
        (Some(Precision::F16), Some(true))
    );
    let TargetSpec::Cpu(cpu) = &spec.targets[&Target::Cpu] else { panic!("of the CPU") };
    assert_eq!(cpu.networks.precision.storage, Some(ElementType::F16));
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    check_refused("targets: {}", "missing field `checkpoint`");
    check_refused(
        "checkpoint: x\nprofile: []\n",
        "unknown field `profile`, expected one of `checkpoint`, `variant`, `components`, `loras`, `targets` at line 2 column 1",
    );
    check_refused(
        "checkpoint: x\ntargets:\n  tpu: {}\n",
        "targets: unknown variant `tpu`, expected one of `cpu`, `cuda`, `tensorrt-rtx`, `tensorrt`, `onnx` at line 3 column 3",
    );
    check_refused(
        "checkpoint: x\ntargets:\n  cpu: {attention: flash}\n",
        "targets.cpu: 'flash' is not fused, plain, sliced:auto, sliced:max or sliced:N heads at line 3 column 8",
    );
    let rtx = |text: &str| format!("checkpoint: x\ntargets:\n  tensorrt-rtx:\n    {text}\n");
    let refused = |text: &str| read(&rtx(text)).expect_err("refused");
    for (text, message) in [
        ("compute_capabilities: [ada]", "'ada' is not a compute capability such as 8.9"),
        ("workspace: lots", "'lots' is not a size such as 512MiB or 4GiB"),
        ("workspace: -1GiB", "'-1GiB' is not a size"),
        ("optimization_level: 6", "optimization_level: 6 is not from 0 to 5"),
        ("precision: {compute: f8}", "unknown variant `f8`, expected one of `f32`, `f16`, `bf16`, `int8`"),
        ("precision: {components: {vae: f32}}", "unknown component 'vae'"),
        ("precision: {storage: i64}", "i64 holds no fractions; expected f32, f16 or bf16"),
        ("precision: {components: {unet: i64}}", "unknown variant `i64`, expected one of `f32`"),
        ("tf32: true\n    tf32: false", "duplicate"),
        ("profiles: [{height: 512}]", "missing field `width`"),
        ("profiles: [{height: big, width: 8}]", "expected a number, or {min, opt, max}"),
        ("profiles: [{height: 0, width: 8}]", "profiles[0].height: 0, 0, 0 are not ascending from 1 to 8192"),
        (
            "profiles: [{height: 8, width: {min: 9, opt: 8, max: 9}}]",
            "profiles[0].width: 9, 8, 9 are not ascending",
        ),
        ("profiles: [{batch: 257, height: 8, width: 8}]", "profiles[0].batch: 257, 257, 257 are not ascending"),
        ("sizes: []", "unknown field `sizes`"),
    ] {
        let found = refused(text);
        assert!(found.contains(message), "{text}: {found}");
    }
    for key in [
        "compute_capabilities: ['8.9']",
        "workspace: 1GiB",
        "tf32: true",
        "channels_last: true",
        "allow_slow_attention: true",
    ] {
        let found = read(&format!("checkpoint: x\ntargets:\n  cpu: {{{key}}}\n")).expect_err("refused");
        let name = key.split(':').next().expect("a name");
        assert!(found.starts_with(&format!("targets.cpu: {name}: has a meaning for ")), "{found}");
        assert!(found.contains(" alone at line 3 column "), "{found}");
    }
    for (target, message) in [
        (
            "onnx: {segments: 16MiB}",
            "onnx: segments: has a meaning for cpu and cuda and tensorrt-rtx and tensorrt alone",
        ),
        (
            "cpu: {profiles: [{height: {min: 8, opt: 8, max: 16}, width: 8}]}",
            "profiles: without engines for GPUs, one with fixed sizes, or none and every size",
        ),
    ] {
        let found = read(&format!("checkpoint: x\ntargets:\n  {target}\n")).expect_err("refused");
        assert!(
            found.starts_with("targets.") && found.contains(message) && found.contains(" at line 3 "),
            "{found}"
        );
    }
}

#[test]
fn a_target_takes_the_keys_of_its_type_and_no_other() {
    let keys = [
        ("attention: plain", "cpu cuda tensorrt-rtx tensorrt onnx"),
        ("precision: {}", "cpu cuda tensorrt-rtx tensorrt onnx"),
        ("controlnet: true", "cpu cuda tensorrt-rtx tensorrt onnx"),
        ("profiles: [{height: 64, width: 64}]", "cpu cuda tensorrt-rtx tensorrt onnx"),
        ("profiles: [{height: {min: 8, opt: 8, max: 16}, width: 8}]", "tensorrt-rtx tensorrt"),
        ("segments: 16MiB", "cpu cuda tensorrt-rtx tensorrt"),
        ("workspace: 1GiB", "tensorrt-rtx tensorrt"),
        ("optimization_level: 0", "cuda tensorrt-rtx tensorrt"),
        ("tf32: true", "cuda tensorrt-rtx tensorrt"),
        ("channels_last: true", "cuda"),
        ("allow_slow_attention: true", "tensorrt-rtx tensorrt"),
        ("compute_capabilities: ['8.9']", "tensorrt-rtx"),
    ];
    for (key, takers) in keys {
        for target in Target::ALL {
            let result = read(&format!("checkpoint: x\ntargets:\n  {target}: {{{key}}}\n"));
            let takes = takers.split(' ').any(|taker| taker == target.to_string());
            assert_eq!(result.is_ok(), takes, "{target}: {key}: {result:?}");
        }
    }
}

#[test]
fn the_command_builds_what_a_specification_says() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    fs::write(
        work.path().join("model.yaml"),
        format!(
            "checkpoint: {}\ntargets:\n  cpu: {{profiles: [{{height: 32, width: 40, batch: 1}}]}}\n",
            model.path().display()
        ),
    )
    .expect("a file");
    let plan = succeed(&mut kiln(&["compile", "model.yaml", "--dry-run"], work.path()));
    assert!(plan.starts_with("cpu\n  text_encoder"), "{plan}");
    assert!(plan.contains("to build: there is none like it"), "{plan}");
    assert!(!work.path().join("engines/entries").exists());
    let bundle = succeed(&mut kiln(&["compile", "model.yaml"], work.path()));
    let described = succeed(&mut kiln(&["inspect", bundle.trim()], work.path()));
    assert!(
        described.contains("default size 40x32") || described.contains("default size 32x40"),
        "{described}"
    );
    let plan = succeed(&mut kiln(&["compile", "model.yaml", "--dry-run", "--json"], work.path()));
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!(plan["plans"][0]["parts"][1]["cached"], true);
    fail(&mut kiln(&["compile", "none.yaml"], work.path()), 3, "none.yaml: no such file or directory");
    fs::write(work.path().join("bad.yaml"), "checkpoint: [").expect("a file");
    fail(&mut kiln(&["compile", "bad.yaml"], work.path()), 3, "bad.yaml: ");
    let foreign = ["compile", "model.yaml", "--compute-capability", "8.9"];
    fail(&mut kiln(&foreign, work.path()), 2, "--compute-capability has no meaning without engines for GPUs");
    let whole = ["compile", "model.yaml", "--target", "onnx", "--segment-size", "1MiB"];
    fail(&mut kiln(&whole, work.path()), 2, "--segment-size has no meaning without targets other than onnx");
    fail(
        &mut kiln(&["compile", "model.yaml", "--target", "tpu"], work.path()),
        2,
        "targets: cpu, cuda, tensorrt-rtx, tensorrt, onnx",
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "(checkpoint: x\n)?(targets:\n)?([ a-z_0-9:{}\\[\\],.\"-]|\n){0,60}") {
        let _ = read(&text);
    }

    #[test]
    fn sizes_are_what_they_say(n in 0_u64..1 << 20, unit in prop::sample::select(vec!["", "B", "KiB", "MiB", "GiB"])) {
        let factor = match unit { "KiB" => 1 << 10, "MiB" => 1 << 20, "GiB" => 1_u64 << 30, _ => 1 };
        prop_assert_eq!(format!("{n}{unit}").parse::<Bytes>(), Ok(Bytes(n * factor)));
    }
}
