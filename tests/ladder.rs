//! `kiln bench ladder`.

use std::fs;

use serde_json::Value;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch, tiny};

#[test]
fn every_rung_is_measured_and_then_memory() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["bench", "ladder", &model, "--steps", "2", "--rounds", "2", "--out", "ladder"];
    let printed = succeed(&mut kiln(&args, work.path()));
    let file = |name: &str| fs::read_to_string(work.path().join("ladder").join(name)).expect(name);
    assert_eq!(printed, format!("{}\n{}", file("ladder.md"), file("memory.md")));
    let report: Value = serde_json::from_str(&file("ladder.json")).expect("JSON");
    let rungs = report["rungs"].as_array().expect("rungs");
    assert_eq!((rungs.len(), &rungs[0]["rung"], &rungs[0]["speed_up"]), (5, &"fp32".into(), &1.0.into()));
    for rung in rungs {
        let number = |key: &str| rung[key].as_f64().expect("a number");
        assert!(number("seconds") > 0.0 && number("steps_per_second") > 0.0, "{rung}");
        assert!(rung["psnr"].as_f64().is_none_or(|psnr| psnr > 50.0), "{rung}");
    }
    assert_eq!(report["memory"]["rows"].as_array().expect("rows").len(), 6);
    assert!(work.path().join("ladder/rung-5.png").is_file());

    let refuse = |args: &[&str], code, message| drop(fail(&mut kiln(args, work.path()), code, message));
    refuse(&args, 2, "ladder: exists and is not empty");
    refuse(&["bench", "ladder", &model, "--steps", "0", "--out", "b"], 2, "at least one of each");
    refuse(&["bench", "ladder", "none", "--out", "b"], 3, "none");
    let bundle = succeed(&mut kiln(&["compile", &model, "--no-reference"], work.path()));
    refuse(&["bench", "ladder", bundle.trim(), "--out", "b"], 3, "is a bundle");
    assert!(!work.path().join("b").exists());
}
