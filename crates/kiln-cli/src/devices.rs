//! What the machine has to run engines on.

use kiln_bundle::Target;
use kiln_cuda::{Check, CudaError, Device, DeviceInfo, Driver, MemoryInfo};
use kiln_engine::{OnnxRuntimeCuda, TensorRt};
use kiln_native::{Library, locate};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::failure::Failure;
use crate::output;
use crate::place::{library, needed_cuda};

pub(crate) fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let mut devices = vec![host()?];
    let driver = Driver::open();
    match driver.and_then(|driver| Ok((driver, driver.devices()?))) {
        Ok((driver, found)) => devices.extend(found.iter().map(|info| gpu(&driver, info, args.check))),
        Err(error) => devices.push(json!({ "device": "cuda", "problem": error.to_string() })),
    }
    match args.json {
        true => output::data(&json!({ "devices": devices }).to_string()),
        false => devices.iter().for_each(show),
    }
    let failed = devices.iter().find_map(|device| device["check"]["problem"].as_str());
    failed.map_or(Ok(()), |problem| Err(Failure::unexpected(problem.to_owned())))
}

/// What a check of a GPU found.
fn check(driver: &Driver, info: &DeviceInfo) -> Value {
    let checked = Device::open(driver, info.ordinal).and_then(|device| device.check());
    let check = match checked {
        Ok(check) => check,
        Err(error) => return json!({ "problem": error.to_string() }),
    };
    let error = check.kernel_error;
    let problem = (error > Check::TOLERANCE)
        .then(|| format!("cuda:{} ({}) computes wrong: {error:.1e} off", info.ordinal, info.name));
    json!({
        "bytes_per_second_from_pageable": check.from_pageable,
        "bytes_per_second_from_pinned": check.from_pinned,
        "bytes_per_second_to_host": check.to_host,
        "latency_seconds": check.latency_seconds,
        "kernel_error": error,
        "problem": problem,
    })
}

fn host() -> Result<Value, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let free = kiln_runtime::process_memory::available();
    let library = match locate(Library::OnnxRuntimeCpu)? {
        Some(found) => found.path.display().to_string(),
        None => "is fetched when it is first needed".into(),
    };
    Ok(json!({
        "device": "cpu",
        "name": format!("{cores} cores"),
        "free_bytes": free,
        "targets": [{ "target": "cpu", "runs": true, "library": library }],
    }))
}

fn gpu(driver: &Driver, info: &DeviceInfo, checks: bool) -> Value {
    let name = format!("cuda:{}", info.ordinal);
    let [major, minor] = driver.cuda_version();
    let memory = Device::open(driver, info.ordinal).and_then(|device| device.memory());
    let targets = [Target::TensorrtRtx, Target::Cuda, Target::Tensorrt];
    let targets = targets.map(|target| runs(target, driver, info, memory.as_ref().err()));
    json!({
        "device": name,
        "name": info.name,
        "total_bytes": info.total_bytes,
        "free_bytes": memory.ok().map(|MemoryInfo { free_bytes, .. }| free_bytes),
        "cuda": format!("{major}.{minor}"),
        "compute_capability": info.compute_capability.to_string(),
        "check": checks.then(|| check(driver, info)),
        "targets": targets,
    })
}

/// Whether engines of a target run on a device, and why not.
fn runs(target: Target, driver: &Driver, info: &DeviceInfo, unusable: Option<&CudaError>) -> Value {
    let library = library(target);
    let found = locate(library);
    let missing = match &found {
        Ok(None) if !library.can_be_fetched() => {
            Some(format!("{library} is not found; {} names it", library.variable()))
        }
        Ok(_) => None,
        Err(e) => Some(e.to_string()),
    };
    let problem = problem(target, driver, info, unusable).or(missing);
    let path = match found {
        Ok(Some(found)) => found.path.display().to_string(),
        _ => "is fetched when it is first needed".into(),
    };
    json!({ "target": target.to_string(), "runs": problem.is_none(), "problem": problem, "library": path })
}

/// Why engines of a target do not run on a device.
fn problem(target: Target, driver: &Driver, info: &DeviceInfo, unusable: Option<&CudaError>) -> Option<String> {
    let library = library(target).to_string();
    let needed = match target {
        Target::Cuda => OnnxRuntimeCuda::NEEDED_COMPUTE_CAPABILITY,
        _ => TensorRt::NEEDED_COMPUTE_CAPABILITY,
    };
    let found = info.compute_capability;
    match driver.check_version(&library, needed_cuda(target)) {
        Err(error) => Some(error.to_string()),
        Ok(()) if found < needed => {
            Some(format!("{library} needs compute capability {needed}, and the device has {found}"))
        }
        Ok(()) => unusable.map(CudaError::to_string),
    }
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
