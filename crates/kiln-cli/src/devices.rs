//! What the machine has to run engines on.

use kiln_runtime::{Backends, Device, DeviceCheck, DeviceReport, TargetReport};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::backends::libraries;
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let backends = Backends::new(libraries());
    let mut devices = vec![describe(&backends.host())];
    match backends.gpus() {
        Ok(gpus) => devices.extend(gpus.iter().map(|gpu| {
            let check = args.check.then(|| check(&backends, gpu));
            let mut device = describe(gpu);
            device["check"] = json!(check);
            device
        })),
        Err(error) => devices.push(json!({ "device": "cuda", "problem": error.to_string() })),
    }
    match args.json {
        true => output::data(&json!({ "devices": devices }).to_string()),
        false => devices.iter().for_each(show),
    }
    let failed = devices.iter().find_map(|device| device["check"]["problem"].as_str());
    failed.map_or(Ok(()), |problem| Err(Failure::unexpected(problem)))
}

/// What a check of a GPU found.
fn check(backends: &Backends, gpu: &DeviceReport) -> Value {
    let Device::Cuda(ordinal) = gpu.device else { return Value::Null };
    let check = match backends.check_gpu(ordinal) {
        Ok(check) => check,
        Err(error) => return json!({ "problem": error.to_string() }),
    };
    let error = check.kernel_error;
    let problem = (error > DeviceCheck::TOLERANCE)
        .then(|| format!("{} ({}) computes wrong: {error:.1e} off", gpu.device, gpu.name));
    json!({
        "bytes_per_second_from_pageable": check.from_pageable,
        "bytes_per_second_from_pinned": check.from_pinned,
        "bytes_per_second_to_host": check.to_host,
        "latency_seconds": check.latency_seconds,
        "kernel_error": error,
        "problem": problem,
    })
}

fn describe(device: &DeviceReport) -> Value {
    let version = |version: Option<[u32; 2]>| version.map(|[major, minor]| format!("{major}.{minor}"));
    json!({
        "device": device.device.to_string(),
        "name": device.name,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
        "cuda": version(device.cuda_version),
        "compute_capability": version(device.compute_capability),
        "targets": device.targets.iter().map(describe_target).collect::<Vec<_>>(),
    })
}

fn describe_target(report: &TargetReport) -> Value {
    let library = match &report.library {
        Some(path) => path.display().to_string(),
        None => "is fetched when it is first needed".into(),
    };
    json!({
        "target": report.target.to_string(),
        "runs": report.problem.is_none(),
        "problem": report.problem,
        "library": library,
    })
}

fn show(device: &Value) {
    let text = |key: &str| device[key].as_str().unwrap_or_default().to_owned();
    if let Some(problem) = device["problem"].as_str() {
        output::data(&format!("{:<8} none: {problem}", text("device")));
        return;
    }
    let bytes = |key: &str, what: &str| device[key].as_u64().map(|n| format!("{} {what}", output::bytes(n)));
    let named = |key: &str, what: &str| device[key].as_str().map(|value| format!("{what} {value}"));
    let facts = [
        device["name"].as_str().map(str::to_owned),
        bytes("total_bytes", "of memory"),
        bytes("free_bytes", "free"),
        named("compute_capability", "compute capability"),
        named("cuda", "driver for CUDA up to"),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    output::data(&format!("{:<8} {}", text("device"), facts.join(", ")));
    let check = &device["check"];
    if let (Some(pageable), Some(pinned)) =
        (check["bytes_per_second_from_pageable"].as_f64(), check["bytes_per_second_from_pinned"].as_f64())
    {
        let rate = |bytes: f64| format!("{}/s", output::bytes(bytes as u64));
        output::data(&format!(
            "{:<8} copies {} from pinned memory, {} from pageable, {} back; answers in {:.0} us; kernels {:.1e} off",
            "",
            rate(pinned),
            rate(pageable),
            rate(check["bytes_per_second_to_host"].as_f64().unwrap_or(0.0)),
            1e6 * check["latency_seconds"].as_f64().unwrap_or(0.0),
            check["kernel_error"].as_f64().unwrap_or(0.0),
        ));
    }
    for target in device["targets"].as_array().into_iter().flatten() {
        let name = target["target"].as_str().unwrap_or_default();
        let state = match target["problem"].as_str() {
            None => format!("runs; library: {}", target["library"].as_str().unwrap_or_default()),
            Some(problem) => format!("does not run: {problem}"),
        };
        output::data(&format!("{:<8} {name}: {state}", ""));
    }
}
