//! Budgets: what is chosen, what it takes, and what is refused.

use std::fs;

use serde_json::Value;

use super::{draw, small};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;

const MEBIBYTE: f64 = 1048576.0;

fn plan(extra: &[&str]) -> Value {
    let (model, work) = (small().display().to_string(), scratch());
    let args = ["plan", &model, "--steps", "12", "--json"];
    serde_json::from_str(&succeed(&mut kiln(&[&args[..], extra].concat(), work.path()))).expect("JSON")
}

/// Peak in bytes of what is held in whole, by component, and by segment.
fn peaks(plan: &Value) -> [f64; 3] {
    ["none", "model", "sequential"].map(|offload| {
        let choices = plan["choices"].as_array().expect("choices");
        let choice = choices.iter().find(|choice| choice["offload"] == offload && choice["vae_tile"].is_null());
        choice.expect("every kind of offload")["peak_bytes"].as_f64().expect("bytes")
    })
}

/// Of choices that differ by less the first is chosen.
const SAME_SPEED: f64 = 1.05;

/// The smallest budget that a prediction fits into, with the margin for what predictions are off.
fn mebibytes(bytes: f64) -> String {
    format!("{}MiB", (1.05 * bytes / MEBIBYTE).ceil())
}

#[test]
fn the_fastest_that_fits_is_chosen_and_obeys() {
    let (model, work) = (small().display().to_string(), scratch());
    let peaks = peaks(&plan(&[]));
    assert!(peaks.is_sorted_by(|more, less| more > less), "{peaks:?}");
    for (offload, peak) in ["none", "model", "sequential"].into_iter().zip(peaks) {
        let budget = mebibytes(peak);
        let planned = plan(&["--memory-budget", &budget]);
        let choices = planned["choices"].as_array().expect("choices");
        let chosen: Vec<&Value> = choices.iter().filter(|choice| choice["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1, "{planned}");
        let seconds = |choice: &&Value| choice["seconds"].as_f64().expect("seconds");
        let fitting = choices.iter().filter(|choice| choice["fits"] == true && choice["vae_tile"].is_null());
        let fastest = fitting.map(|choice| seconds(&choice)).fold(f64::INFINITY, f64::min);
        assert!(seconds(&chosen[0]) <= SAME_SPEED * fastest, "{planned}");
        let untiled =
            choices.iter().find(|choice| choice["offload"] == offload && choice["vae_tile"].is_null());
        assert_eq!(untiled.expect("every kind of offload")["fits"], true, "{planned}");
        let (offload, peak) = (&chosen[0]["offload"], chosen[0]["peak_bytes"].as_f64().expect("bytes"));
        let offload = offload.as_str().expect("a kind of offload");

        let (out, trace) = (work.path().join("a.png"), work.path().join("trace.json"));
        let trace_name = trace.display().to_string();
        let extra = ["--memory-budget", &budget, "--memory-trace", &trace_name];
        let output =
            kiln(&[&draw(&model, &out)[..], &extra].concat(), work.path()).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert!(said.contains(&format!("memory: --offload {offload}")), "{said}");
        let trace: Value = serde_json::from_slice(&fs::read(&trace).expect("a trace")).expect("JSON");
        let taken = trace["peak_bytes"].as_f64().expect("bytes");
        assert!((0.9..1.05).contains(&(taken / peak)), "{offload} took {taken}, predicted {peak}");
        let sampled = trace["samples"].as_array().expect("samples");
        assert!(sampled.iter().all(|sample| sample[1].as_f64().is_some_and(|bytes| bytes <= taken * 1.01)));
        assert!(trace["phases"].to_string().contains("steps"), "{}", trace["phases"]);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_smallest_budget_that_would() {
    let (model, work) = (small().display().to_string(), scratch());
    let smallest = peaks(&plan(&[]))[2];
    let out = work.path().join("a.png");
    let refused = [&draw(&model, &out)[..], &["--memory-budget", "20MiB"]].concat();
    let output = fail(&mut kiln(&refused, work.path()), 7, "memory budget: 21.0 MB are too few");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let budget = mebibytes(smallest);
    assert!(said.contains(&format!("--memory-budget {budget} is the smallest that fits")), "{said}");
    assert!(!out.exists());
    succeed(&mut kiln(&[&draw(&model, &out)[..], &["--memory-budget", &budget]].concat(), work.path()));
    fail(&mut kiln(&["plan", &model, "--memory-budget", "20MiB"], work.path()), 7, "memory budget: 21.0 MB");
    fail(&mut kiln(&["plan", &model, "--memory-budget", "lots"], work.path()), 2, "--memory-budget");
    let both = [&draw(&model, &out)[..], &["--memory-budget", "auto", "--offload", "model"]].concat();
    fail(&mut kiln(&both, work.path()), 2, "cannot be used with");
}

#[test]
fn segments_stay_loaded_as_far_as_the_budget_goes() {
    let (model, work) = (small().display().to_string(), scratch());
    let peaks = peaks(&plan(&[]));
    let half = (peaks[1] + peaks[2]) / 2.0;
    let budget = mebibytes(half);
    let planned = plan(&["--memory-budget", &budget]);
    let kept = planned["keep_bytes"].as_f64().expect("bytes");
    let left = half - peaks[2];
    assert!(kept > 0.4 * left && kept <= left, "{kept} of {left}");
    let chosen = planned["choices"].as_array().expect("choices").iter().find(|choice| choice["chosen"] == true);
    let predicted = chosen.expect("a choice")["peak_bytes"].as_f64().expect("bytes");
    assert!(
        predicted > peaks[2] + 0.5 * kept && predicted <= half + MEBIBYTE,
        "{predicted} of {half}, keeping {kept}"
    );
    let (out, trace) = (work.path().join("a.png"), work.path().join("trace.json"));
    let trace_name = trace.display().to_string();
    let taken = |extra: &[&str]| {
        let extra = [&["--memory-trace", &trace_name], extra].concat();
        succeed(&mut kiln(&[&draw(&model, &out)[..], &extra].concat(), work.path()));
        let trace: Value = serde_json::from_slice(&fs::read(&trace).expect("a trace")).expect("JSON");
        (trace["peak_bytes"].as_f64().expect("bytes"), fs::read(&out).expect("a picture"))
    };
    let (least, picture) = taken(&["--offload", "sequential"]);
    let (most, same) = taken(&["--memory-budget", &budget]);
    let budget = 1.05 * half + MEBIBYTE;
    assert!(most > least + 0.7 * kept && most <= budget, "{least} to {most}, keeping {kept} in {budget}");
    assert!(picture == same);
    let folder = work.path().display().to_string();
    let fresh = work.path().join("fresh.png");
    let wrong = [&draw(&model, &fresh)[..], &["--memory-trace", &folder]].concat();
    fail(&mut kiln(&wrong, work.path()), 2, "is not a regular file");
    let wrong = [&draw(&model, &out)[..], &["--offload", "model", "--keep", "1MiB"]].concat();
    fail(&mut kiln(&wrong, work.path()), 2, "keep: only sequential offload drops segments");
}

#[test]
fn auto_takes_what_is_free() {
    let planned = plan(&["--memory-budget", "auto"]);
    let budget = planned["budget_bytes"].as_f64().expect("bytes");
    let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a total");
    let total: f64 = total.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0;
    assert!(budget > 0.0 && budget <= total, "{budget} of {total}");
}

#[test]
fn larger_pictures_and_batches_take_more() {
    let small = plan(&[]);
    for (extra, tiles) in [(&["--width", "256", "--height", "256"][..], 3), (&["--batch-size", "4"], 0)] {
        let large = plan(extra);
        assert!(peaks(&small).iter().zip(peaks(&large)).all(|(small, large)| *small < large), "{large}");
        let choices = large["choices"].as_array().expect("choices");
        let (whole, tiled) = choices.split_at(3);
        assert_eq!(tiled.len(), tiles, "{large}");
        for (whole, tiled) in whole.iter().zip(tiled) {
            assert_eq!(tiled["vae_tile"], 64, "the model's default size");
            assert!(tiled["peak_bytes"].as_f64() <= whole["peak_bytes"].as_f64(), "{large}");
        }
    }
}

#[test]
fn a_bundle_without_figures_is_measured_when_they_are_needed() {
    let work = scratch();
    let model = crate::support::references().join("../../models/shapes").display().to_string();
    let compiled = succeed(&mut kiln(&["compile", &model], work.path()));
    let figures = std::path::Path::new(compiled.trim()).join("figures.json");
    assert!(!figures.exists());
    succeed(&mut kiln(&["plan", compiled.trim()], work.path()));
    let measured = fs::read_to_string(&figures).expect("figures");
    succeed(&mut kiln(&["inspect", compiled.trim(), "--verify"], work.path()));
    succeed(&mut kiln(&["measure", compiled.trim(), "--no-store"], work.path()));
    assert_eq!(fs::read_to_string(&figures).expect("figures"), measured, "what is not to be stored is not");
    fail(&mut kiln(&["measure", &model], work.path()), 3, "is not a bundle");
}

/// Draws under a budget that sequential offload just fits into; what was taken, and what was predicted.
#[track_caller]
fn obeys(prompt: &str, extra: &[&str]) -> (f64, f64) {
    let (model, work) = (small().display().to_string(), scratch());
    let (out, trace) = (work.path().join("a.png"), work.path().join("trace.json"));
    let mut args = draw(&model, &out);
    args[1] = prompt;
    let trace_name = trace.display().to_string();
    let refused = [&args[..], extra, &["--memory-budget", "1MiB"]].concat();
    let output = fail(&mut kiln(&refused, work.path()), 7, "memory budget");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let budget =
        said.split("--memory-budget ").nth(1).and_then(|rest| rest.split_once("MiB")).expect("a budget").0;
    let given = format!("{budget}MiB");
    let drawn = [&args[..], extra, &["--memory-budget", &given, "--memory-trace", &trace_name]].concat();
    succeed(&mut kiln(&drawn, work.path()));
    let trace: Value = serde_json::from_slice(&fs::read(&trace).expect("a trace")).expect("JSON");
    let taken = trace["peak_bytes"].as_f64().expect("bytes");
    let budget = budget.parse::<f64>().expect("a number") * MEBIBYTE;
    assert!(taken <= budget, "{extra:?}: {taken} of {budget}");
    (taken, budget)
}

#[test]
fn budgets_hold_for_other_sizes_batches_and_prompts() {
    for side in ["128", "256", "512"] {
        let (taken, budget) = obeys("a red circle", &["--width", side, "--height", side]);
        // The budget has 15 % more than the forecast, and the forecast is within a tenth.
        assert!(taken > 0.8 * budget, "{side}: {taken} of {budget}");
    }
    obeys("a red circle", &["--batch-size", "3"]);
    obeys(&"a red circle, ".repeat(100), &[]);
    obeys("a red circle", &["--hires", "2"]);
}

#[test]
fn predictions_are_within_a_tenth_at_four_times_the_side() {
    let (model, work) = (small().display().to_string(), scratch());
    for side in ["128", "256"] {
        let args = ["bench", "memory", &model, "--steps", "1", "--width", side, "--height", side, "--json"];
        let args = [&args[..], &["--out", side]].concat();
        let report: Value = serde_json::from_str(&succeed(&mut kiln(&args, work.path()))).expect("JSON");
        for row in report["rows"].as_array().expect("rows") {
            let [peak, predicted] =
                ["peak_bytes", "predicted_bytes"].map(|key| row[key].as_f64().expect("bytes"));
            assert!((predicted / peak - 1.0).abs() < 0.1, "{side}: {row}");
        }
    }
}

#[test]
fn tiles_are_for_what_fits_no_other_way() {
    let planned = plan(&["--width", "256", "--height", "256", "--memory-budget", "8GiB"]);
    let chosen = planned["choices"].as_array().expect("choices").iter().find(|choice| choice["chosen"] == true);
    assert!(chosen.expect("a choice")["vae_tile"].is_null(), "{planned}");
}

#[test]
fn tiles_that_cannot_be_are_refused_before_anything_runs() {
    let (model, work) = (small().display().to_string(), scratch());
    let out = work.path().join("a.png");
    let wrong = [&draw(&model, &out)[..], &["--vae-tile", "4"]].concat();
    let output = fail(&mut kiln(&wrong, work.path()), 2, "VAE tile: 4 with an overlap of 0.25");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains('%') && !out.exists(), "{said}");
}
