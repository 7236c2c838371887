//! Where a picture's time goes on the processor: ONNX Runtime's profiles of a child process, added up by operator.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;

use kiln_bundle::Target;
use kiln_native::env::KILN_PROFILES;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{PROMPT, check};
use crate::args::{BenchOperatorsArgs, OffloadChoice, Work};
use crate::draw::{Drawn, Job};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::{child, output};

pub(super) fn run(args: &BenchOperatorsArgs) -> Result<(), Failure> {
    check(args.steps, 1)?;
    let bundle = open_bundle(&args.bundle)?;
    if bundle.manifest().target != Target::Cpu {
        let reason = format!("is for {}; operators are measured on the processor", bundle.manifest().target);
        return Err(Failure::input(&args.bundle, &reason));
    }
    let folder = tempfile::tempdir().map_err(Failure::unexpected)?;
    let job = Job {
        bundle: args.bundle.clone(),
        prompt: PROMPT.into(),
        steps: args.steps,
        scheduler: None,
        // As many again: of each session's runs, the second half counts.
        warm_up: Some(u32::try_from(args.steps).map_err(|_| Failure::usage("--steps: too many"))?),
        width: args.pixels.width,
        height: args.pixels.height,
        offload: OffloadChoice::None,
        vae_tile: None,
        picture: folder.path().join("picture.png"),
        execution: args.execution,
    };
    let profiles: [(&str, &OsStr); 1] = [(KILN_PROFILES, folder.path().as_os_str())];
    let drawn: Drawn = child::call_with(Work::Draw, &job, &profiles)?;
    let components = read(folder.path())?;
    if components.is_empty() {
        return Err(Failure::usage("nothing was profiled: operators are measured with ONNX Runtime"));
    }
    match args.json {
        true => output::data(&json(&components, &drawn, args).to_string()),
        false => output::data(markdown(&components, args.steps).trim_end()),
    }
    Ok(())
}

/// An event of ONNX Runtime's profile.
#[derive(Deserialize)]
struct Event {
    cat: String,
    name: String,
    /// Microseconds since the session began.
    ts: u64,
    /// Microseconds.
    dur: u64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Arguments {
    op_name: String,
    input_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
    output_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
    thread_scheduling_stats: Threads,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Threads {
    sub_threads: BTreeMap<String, serde_json::Value>,
}

/// An operator on tensors of certain shapes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Operator {
    name: String,
    inputs: Vec<Vec<u64>>,
}

/// What it took.
#[derive(Clone, Copy, Default, Serialize)]
struct Cost {
    calls: u64,
    /// Time times cores.
    core_seconds: f64,
    /// Operations that its definition takes, multiplications and additions; none where they do not matter.
    flop: f64,
}

impl Cost {
    fn add(&mut self, other: Cost) {
        self.calls += other.calls;
        self.core_seconds += other.core_seconds;
        self.flop += other.flop;
    }

    fn gflops_per_core(&self) -> Option<f64> {
        (self.flop > 0.0).then(|| self.flop / self.core_seconds / 1e9)
    }
}

type Costs = BTreeMap<Operator, Cost>;

/// What operators of each component took.
fn read(folder: &Path) -> Result<BTreeMap<String, Costs>, Failure> {
    let mut components: BTreeMap<String, Costs> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Failure::input(folder, &e.to_string()))? {
        let path = entry.map_err(|e| Failure::input(folder, &e.to_string()))?.path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let text = std::fs::read(&path).map_err(|e| Failure::input(&path, &e.to_string()))?;
        let events: Vec<Event> =
            serde_json::from_slice(&text).map_err(|e| Failure::input(&path, &e.to_string()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let component = name.split('.').next().unwrap_or_default();
        add(&events, components.entry(component.to_owned()).or_default());
    }
    components.retain(|_, costs| !costs.is_empty());
    Ok(components)
}

/// Adds the second half of a session's runs.
fn add(events: &[Event], costs: &mut Costs) {
    let mut runs: Vec<u64> =
        events.iter().filter(|event| event.name == "model_run").map(|event| event.ts).collect();
    runs.sort_unstable();
    let Some(&start) = runs.get(runs.len() / 2) else { return };
    for event in events.iter().filter(|event| event.cat == "Node" && event.ts >= start) {
        let arguments = &event.args;
        if arguments.op_name.is_empty() {
            continue;
        }
        let inputs = shapes(&arguments.input_type_shape);
        let flop = flop(&arguments.op_name, &inputs, &shapes(&arguments.output_type_shape));
        let cores = 1 + arguments.thread_scheduling_stats.sub_threads.len();
        let core_seconds = event.dur as f64 * 1e-6 * cores as f64;
        let operator = Operator { name: arguments.op_name.clone(), inputs };
        costs.entry(operator).or_default().add(Cost { calls: 1, core_seconds, flop });
    }
}

fn shapes(tensors: &[BTreeMap<String, Vec<u64>>]) -> Vec<Vec<u64>> {
    tensors.iter().filter_map(|tensor| tensor.values().next().cloned()).collect()
}

/// Operations of products: direct convolutions, whatever algorithm computes them.
fn flop(name: &str, inputs: &[Vec<u64>], outputs: &[Vec<u64>]) -> f64 {
    let product = |sizes: &[u64]| sizes.iter().map(|&n| n as f64).product::<f64>();
    let [Some(first), Some(second), Some(output)] = [inputs.first(), inputs.get(1), outputs.first()] else {
        return 0.0;
    };
    match of_f32(name) {
        "Conv" | "FusedConv" | "NhwcFusedConv" if second.len() > 1 => {
            2.0 * product(output) * product(&second[1..])
        }
        "Linear" if !first.is_empty() => 2.0 * product(&first[..first.len() - 1]) * product(second),
        "MatMul" | "Gemm" | "FusedMatMul" => 2.0 * product(output) * first.last().map_or(0.0, |&k| k as f64),
        "Attention" | "MultiHeadAttention" if second.len() > 1 => {
            4.0 * product(first) * second[second.len() - 2] as f64
        }
        _ => 0.0,
    }
}

/// The name of the operator of f32 that does the same.
fn of_f32(name: &str) -> &str {
    ["Bf16", "Int8"].iter().find_map(|of| name.strip_suffix(of)).unwrap_or(name)
}

/// What an operator is called in the table: convolutions by their kernel.
fn label(operator: &Operator) -> String {
    match operator.inputs.get(1).map(Vec::as_slice) {
        Some([_, _, height, width]) if of_f32(&operator.name).ends_with("Conv") => {
            format!("{} {height}x{width}", operator.name)
        }
        _ => operator.name.clone(),
    }
}

fn markdown(components: &BTreeMap<String, Costs>, steps: usize) -> String {
    let mut text = String::new();
    for (component, costs) in components {
        let mut rows: BTreeMap<String, Cost> = BTreeMap::new();
        costs.iter().for_each(|(operator, cost)| rows.entry(label(operator)).or_default().add(*cost));
        let mut rows: Vec<(String, Cost)> = rows.into_iter().collect();
        rows.sort_by(|(_, a), (_, b)| b.core_seconds.total_cmp(&a.core_seconds));
        let total: f64 = rows.iter().map(|(_, cost)| cost.core_seconds).sum();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{component}: {total:.3} core seconds in {}\n\n\
             | operator | calls | share | core seconds | GFLOP | GFLOP/s of a core |\n|---|---|---|---|---|---|",
            if steps == 1 { "a step".into() } else { format!("{steps} steps") }
        );
        for (operator, cost) in rows.iter().filter(|(_, cost)| cost.core_seconds >= 1e-3 * total) {
            let share = 100.0 * cost.core_seconds / total;
            let rate = cost.gflops_per_core().map_or_else(String::new, |rate| format!("{rate:.1}"));
            let work = if cost.flop > 0.0 { format!("{:.1}", cost.flop / 1e9) } else { String::new() };
            let (calls, seconds) = (cost.calls, cost.core_seconds);
            let _ = writeln!(text, "| {operator} | {calls} | {share:.1} % | {seconds:.3} | {work} | {rate} |");
        }
        text.push('\n');
    }
    text
}

fn json(components: &BTreeMap<String, Costs>, drawn: &Drawn, args: &BenchOperatorsArgs) -> serde_json::Value {
    let described = components.iter().map(|(component, costs)| {
        let operators = costs.iter().map(|(operator, cost)| {
            json!({
                "operator": operator.name, "inputs": operator.inputs, "calls": cost.calls,
                "core_seconds": cost.core_seconds, "flop": cost.flop, "gflops_per_core": cost.gflops_per_core(),
            })
        });
        (component.clone(), operators.collect::<serde_json::Value>())
    });
    json!({
        "components": described.collect::<serde_json::Map<_, _>>(),
        "steps": args.steps,
        "seconds": drawn.seconds,
        "kiln": env!("CARGO_PKG_VERSION"),
    })
}
