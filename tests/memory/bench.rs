//! `kiln bench memory`.

use std::fs;

use serde_json::Value;

use super::small;
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;

#[test]
fn every_way_to_spend_memory_is_measured() {
    let (model, work) = (small().display().to_string(), scratch());
    let args = ["bench", "memory", &model, &model, "--steps", "1", "--rounds", "2", "--out", "bench"];
    let table = succeed(&mut kiln(&args, work.path()));
    let file = |name: &str| fs::read_to_string(work.path().join("bench").join(name)).expect(name);
    assert_eq!(file("memory.md"), table);
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(rows.len(), 6, "{table}");
    assert!(rows[0].starts_with("| shapes | none | none | ") && rows[0].contains("| 1.00 x |"), "{table}");
    assert!(rows[1].starts_with("| shapes | model | none | ") && rows[1].ends_with("| identical |"), "{table}");
    assert!(rows[2].starts_with("| shapes | sequential | none | "), "{table}");

    let report: Value = serde_json::from_str(&file("memory.json")).expect("JSON");
    for row in report["rows"].as_array().expect("rows") {
        let [peak, predicted] = ["peak_bytes", "predicted_bytes"].map(|key| row[key].as_f64().expect("bytes"));
        assert!((0.8..1.2).contains(&(predicted / peak)), "{row}");
        assert!(row["step_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{row}");
        assert!(row["psnr"].as_f64().is_none_or(|psnr| psnr > 50.0), "{row}");
    }
    let chart = file("memory.svg");
    assert!(chart.starts_with("<svg ") && chart.ends_with("</svg>\n"));
    assert_eq!(chart.matches("<polyline ").count(), 6);
    assert!(chart.contains("<title>steps</title>") && chart.contains("<title>decode</title>"));
    for name in ["01-none.png", "03-sequential.png", "03-sequential.json"] {
        assert!(work.path().join("bench").join(name).is_file(), "{name}");
    }
    fail(&mut kiln(&args, work.path()), 2, "bench: exists and is not empty");
    let refuse = |args: &[&str], code, message| drop(fail(&mut kiln(args, work.path()), code, message));
    refuse(&["bench", "memory", &model, "--out", "b", "--rounds", "0"], 2, "at least one of each");
    refuse(&["bench", "memory", &model, "--out", "b", "--width", "30"], 2, "width: 30 is not a multiple of");
    refuse(&["bench", "memory", "none", "--out", "b"], 3, "none: is not a bundle");
    assert!(!work.path().join("b").exists());
}
