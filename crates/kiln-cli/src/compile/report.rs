//! What is told of plans and bundles.

use std::time::Instant;

use kiln_bundle::Target;
use kiln_compile::{Compiled, Step};
use serde_json::{Value, json};

use crate::args::CompileArgs;
use crate::output;

pub(super) fn finish(args: &CompileArgs, reports: Vec<Value>, start: Instant) {
    if args.json {
        let key = if args.dry_run { "plans" } else { "bundles" };
        output::data(&json!({ key: reports, "seconds": start.elapsed().as_secs_f64() }).to_string());
    }
}

pub(super) fn plan(target: Target, steps: &[Step], args: &CompileArgs) -> Value {
    if !args.json {
        output::data(&format!("{target}"));
        steps.iter().for_each(|step| report_step(step, args.why, output::data));
    }
    json!({ "target": target.to_string(), "parts": steps.iter().map(describe).collect::<Vec<_>>() })
}

pub(super) fn bundle(target: Target, compiled: &Compiled, steps: &[Step], args: &CompileArgs) -> Value {
    let root = compiled.bundle.root().display().to_string();
    if !args.json {
        let built = steps.iter().filter(|step| !step.is_cached);
        built.for_each(|step| report_step(step, true, output::say));
        output::data(&root);
    }
    let mut report = json!({
        "target": target.to_string(),
        "bundle": root,
        "key": compiled.bundle.manifest().provenance.key,
        "cached": compiled.was_cached,
    });
    if args.why {
        report["parts"] = steps.iter().map(describe).collect();
    }
    report
}

fn report_step(step: &Step, why: bool, print: fn(&str)) {
    let state = match (step.is_cached, step.differences.is_empty()) {
        (true, _) => "cached".into(),
        (false, true) => "to build: there is none like it".into(),
        (false, false) => {
            let names: Vec<&str> = step.differences.iter().map(|d| d.name.as_str()).collect();
            format!("to build: other {}", names.join(", "))
        }
    };
    let slash = if step.folder.is_empty() { "" } else { "/" };
    let size = output::bytes(step.weight_bytes);
    let line = format!("  {}{slash}{:<16} {size} of weights, {state}", step.folder, step.recipe.part);
    print(&line);
    if why {
        for difference in &step.differences {
            let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
            print(&format!(
                "    {}: {} -> {}",
                difference.name,
                show(&difference.before),
                show(&difference.now)
            ));
        }
    }
}

fn describe(step: &Step) -> Value {
    let differences =
        step.differences.iter().map(|d| json!({ "name": d.name, "before": d.before, "now": d.now }));
    json!({
        "folder": step.folder,
        "part": step.recipe.part,
        "key": step.recipe.key(),
        "cached": step.is_cached,
        "weight_bytes": step.weight_bytes,
        "differences": differences.collect::<Vec<_>>(),
    })
}
