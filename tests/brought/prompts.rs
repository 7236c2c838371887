//! Requests that other programs would read otherwise, or that are too large.

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{scratch, tiny};

#[test]
fn what_is_read_as_words_is_told() {
    let (model, work) = (tiny(), scratch());
    let path = model.path().display().to_string();
    let said = |prompt: &str| {
        let args =
            ["generate", prompt, "--model", &path, "--steps", "1", "--backend", "rten", "--out", "a.png"];
        let output = kiln(&args, work.path()).output().expect("kiln runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said("x <lora:style:0.8>").starts_with("prompt: '<lora:style:0.8>' is read as words; "));
    assert!(said("x [red:blue:0.5]").starts_with("prompt: '[red:blue:0.5]' is read as words of less weight"));
    assert!(said("a cat AND a dog").starts_with("prompt: 'AND' is read as a word"));
    assert_eq!(said("a < b, <toy> and (c:1.2) [d]"), "");
}

#[test]
fn impossible_prompts_are_refused_before_they_take_memory() {
    let (model, work) = (tiny(), scratch());
    let path = model.path().display().to_string();
    let refuse = |prompt: &str, more: &[&str], message: &str| {
        let args = ["generate", prompt, "--model", &path, "--backend", "rten", "--out", "a.png"];
        fail(&mut kiln(&[&args, more].concat(), work.path()), 2, message);
    };
    refuse(&"BREAK ".repeat(16_000), &[], "comes to 16001 blocks of tokens, more than 100");
    refuse(&format!("{}a{}", "(".repeat(1000), ")".repeat(1000)), &[], "'a' has the weight inf, beyond 1000");
    refuse("(a:-2000)", &[], "'a' has the weight -2000, beyond 1000");
    refuse(&"x".repeat(100_000), &["--batch-size", "65536"], "batch size: 65536 is not a number from 1 to 256");
}

#[test]
fn numbers_below_zero_are_read() {
    let (model, work) = (tiny(), scratch());
    let path = model.path().display().to_string();
    let draw =
        ["generate", "x", "--model", &path, "--backend", "rten", "--steps", "1", "--out", "a.png", "--json"];
    let seed = |args: &[&str]| {
        let report: serde_json::Value =
            serde_json::from_str(&succeed(&mut kiln(&[&draw, args].concat(), work.path()))).expect("JSON");
        report["seed"].clone()
    };
    assert_ne!(seed(&["--seed", "-1"]), seed(&["--seed", "-1"]));
    assert_eq!(seed(&["--seed", "5", "--guidance-scale", "-3"]), 5);
    fail(&mut kiln(&[&draw[..], &["--seed", "-2"]].concat(), work.path()), 2, "nor -1 for a new seed");
    let controlled = ["--controlnet", "nowhere", "--control-scale", "-1"];
    fail(&mut kiln(&[&draw[..], &controlled].concat(), work.path()), 2, "--control-image <FILE>");
}
