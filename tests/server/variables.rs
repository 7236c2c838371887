//! Environment variables of the flags of `kiln serve`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Server;
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;

/// Flags that are no settings, which `--print-config` leaves out.
const ACTIONS: [&str; 2] = ["--new-key", "--print-config"];

fn shapes() -> String {
    crate::support::references().join("../../models/shapes").display().to_string()
}

fn serve(flags: &[&str], variables: &[(&str, &str)], folder: &Path) -> Command {
    let mut command = kiln(&[&["serve"], flags].concat(), folder);
    command.envs(variables.iter().copied());
    command
}

/// What `--print-config` says of flags and variables.
fn config(flags: &[&str], variables: &[(&str, &str)]) -> Value {
    let (work, shapes) = (scratch(), shapes());
    let variables = [&[("KILN_SERVE_MODELS", &*shapes)], variables].concat();
    let flags = [&["--print-config"], flags].concat();
    serde_yaml::from_str(&succeed(&mut serve(&flags, &variables, work.path()))).expect("YAML")
}

/// Flags and their variables as `--help` pairs them.
pub(crate) fn variables_of_help() -> BTreeMap<String, String> {
    let work = scratch();
    let text = succeed(&mut serve(&["--help"], &[], work.path()));
    let mut pairs = BTreeMap::new();
    let mut flag = None;
    for line in text.lines().map(str::trim_start) {
        let first = line.trim_start_matches("-h, ").split([' ', '=', '.']).next().unwrap_or_default();
        if first.starts_with("--") || first == "[MODELS]" {
            flag = Some(first.to_owned());
        }
        if let Some((_, rest)) = line.split_once("[env: ") {
            let variable = rest.split([']', '=']).next().expect("a name").to_owned();
            pairs.insert(flag.clone().expect("a flag before"), variable);
        }
    }
    pairs
}

#[test]
fn every_flag_has_a_variable() {
    let work = scratch();
    let text = succeed(&mut serve(&["--help"], &[], work.path()));
    let pairs = variables_of_help();
    let lines = text.lines().map(str::trim_start).map(|line| line.trim_start_matches("-h, "));
    let flags = lines.filter(|line| line.starts_with("--")).filter_map(|line| line.split([' ', '.']).next());
    let flags: Vec<&str> = flags.filter(|flag| *flag != "--help").collect();
    assert!(flags.len() > 30, "{flags:?}");
    for flag in flags {
        let expected = match flag {
            "--engine-cache" => "KILN_ENGINE_CACHE".into(),
            _ => format!("KILN_SERVE_{}", flag[2..].to_uppercase().replace('-', "_")),
        };
        assert_eq!(pairs.get(flag), Some(&expected), "{flag}");
    }
    assert_eq!(pairs["[MODELS]"], "KILN_SERVE_MODELS");
}

#[test]
fn every_variable_sets_its_flag() {
    let values = [
        ("--listen", "[::1]:81", json!("[::1]:81")),
        ("--allow-strangers", "1", json!(true)),
        (
            "--allow-origin",
            "https://a.example,https://b.example:1",
            json!(["https://a.example", "https://b.example:1"]),
        ),
        ("--keep-size", "2GiB", json!("2GiB")),
        ("--memory-budget", "4GiB", json!("4GiB")),
        ("--max-body", "1MiB", json!("1MiB")),
        ("--offload", "model", json!("model")),
        ("--log-format", "json", json!("json")),
        ("--backend", "rten", json!("rten")),
        ("--device", "cpu", json!("cpu")),
        ("--prediction-type", "epsilon", json!("epsilon")),
        ("--attention", "plain", json!("plain")),
    ];
    let numbers = ["keep-hours", "queue", "queue-share", "batch", "idle", "drain", "threads", "stuck-after"];
    let lists = ["--allow-host"];
    let mut set = Vec::new();
    let mut expected = Vec::new();
    for (flag, variable) in variables_of_help() {
        if ACTIONS.contains(&&*flag) || flag == "[MODELS]" {
            continue;
        }
        let key = flag[2..].replace('-', "_");
        let (text, value) = match values.iter().find(|(name, ..)| *name == flag) {
            Some((_, text, value)) => ((*text).to_owned(), value.clone()),
            None if numbers.contains(&&flag[2..]) => ("7".into(), json!(7)),
            None if lists.contains(&&*flag) => continue,
            None => (format!("of-{key}"), json!(format!("of-{key}"))),
        };
        set.push((variable, text));
        expected.push((key, value));
    }
    assert!(set.len() > 25, "{set:?}");
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (&**name, &**value)).collect();
    // Files that a start reads are missing here, which printing does not mind; keys are read.
    let work = scratch();
    let keys = work.path().join("keys").display().to_string();
    let made = succeed(&mut serve(&["--new-key", "ann"], &[], work.path()));
    std::fs::write(&keys, made).expect("a file");
    let set: Vec<_> = set
        .into_iter()
        .map(|(name, value)| (name, if name == "KILN_SERVE_KEYS" { &*keys } else { value }))
        .collect();
    let printed = config(&[], &set);
    for (key, value) in expected {
        let value = if key == "keys" { json!(keys) } else { value };
        let is_path = |printed: &Value| {
            printed.as_str().zip(value.as_str()).is_some_and(|(found, name)| Path::new(found).ends_with(name))
        };
        assert!(printed[&key] == value || is_path(&printed[&key]), "{key}: {}", printed[&key]);
    }
    let hosts = config(&[], &[("KILN_SERVE_ALLOW_HOST", "a.example,b.example")])["allow_host"].clone();
    let hosts: Vec<_> = hosts.as_array().expect("names").iter().take(2).cloned().collect();
    assert_eq!(hosts, [json!("a.example"), json!("b.example")]);
    assert_eq!(printed["models"][0]["name"], "shapes");
}

#[test]
fn a_flag_wins_over_its_variable_and_an_empty_one_is_unset() {
    let of = |flags: &[&str], value: &str| config(flags, &[("KILN_SERVE_QUEUE", value)])["queue"].clone();
    assert_eq!([of(&[], "9"), of(&["--queue", "3"], "9"), of(&[], "")], [json!(9), json!(3), json!(64)]);
    let cases = [("true", true), ("1", true), ("false", false), ("0", false), ("", false)];
    for (value, is_set) in cases {
        let printed = config(&[], &[("KILN_SERVE_ALLOW_STRANGERS", value)]);
        assert_eq!(printed["allow_strangers"], is_set, "{value}");
    }
    let printed = config(&["--allow-strangers"], &[("KILN_SERVE_ALLOW_STRANGERS", "false")]);
    assert_eq!(printed["allow_strangers"], true);
    let printed =
        config(&[], &[("KILN_SERVE_LISTEN", ""), ("KILN_SERVE_KEYS", ""), ("KILN_SERVE_TLS_KEY", "")]);
    assert_eq!((&printed["listen"], &printed["keys"]), (&json!("127.0.0.1:7860"), &Value::Null));
    let origins = [("KILN_SERVE_ALLOW_ORIGIN", "https://a.example")];
    let printed = config(&["--allow-origin", "https://b.example"], &origins);
    assert_eq!(printed["allow_origin"], json!(["https://b.example"]));
    let elsewhere = [("KILN_SERVE_ENGINE_CACHE", "here"), ("KILN_ENGINE_CACHE", "there")];
    assert!(config(&[], &elsewhere)["engine_cache"].as_str().is_some_and(|path| path.ends_with("/here")));
}

#[test]
fn a_wrong_value_is_told_with_its_variable() {
    let work = scratch();
    let cases = [
        ("KILN_SERVE_QUEUE", "many", "'many'"),
        ("KILN_SERVE_QUEUE", "-1", "'-1'"),
        ("KILN_SERVE_LISTEN", "nowhere", "'nowhere'"),
        ("KILN_SERVE_OFFLOAD", "all", "'all'"),
        ("KILN_SERVE_KEEP_SIZE", "1e400", "'1e400'"),
        ("KILN_SERVE_ALLOW_STRANGERS", "yes", "'yes'"),
        ("KILN_SERVE_ALLOW_HOST", "a b", "'a b'"),
        ("KILN_SERVE_ALLOW_ORIGIN", "https://a.example,*", "'*'"),
        ("KILN_SERVE_NEW_KEY", "a:b", "'a:b'"),
        ("KILN_SERVE_DEVICE", "tpu", "'tpu'"),
        ("KILN_SERVE_TLS_KEY", "key.pem", "--tls-certificate"),
    ];
    for (name, value, told) in cases {
        let output = fail(&mut serve(&[], &[(name, value)], work.path()), 2, &format!("error: {name}: "));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(told), "{said}");
    }
    // One of the command line is the flag's.
    let variables = [("KILN_SERVE_QUEUE", "7"), ("KILN_SERVE_LISTEN", "nowhere")];
    let output = fail(&mut serve(&["--queue", "many"], &variables, work.path()), 2, "'many' for '--queue");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("KILN_SERVE_QUEUE"));
    let mut compile = kiln(&["compile", &shapes()], work.path());
    fail(
        compile.env("KILN_ENGINE_CACHE_LIMIT", "large"),
        2,
        "error: KILN_ENGINE_CACHE_LIMIT: invalid value 'large'",
    );
    for origin in ["*", "null", "https://a.example/", "a.example", "https://"] {
        fail(&mut serve(&["--allow-origin", origin], &[], work.path()), 2, "is no origin");
    }
}

#[test]
fn help_shows_no_value_of_a_variable() {
    let work = scratch();
    let text = succeed(&mut serve(&["--help"], &[("KILN_SERVE_KEYS", "/secret/place")], work.path()));
    assert!(text.contains("[env: KILN_SERVE_KEYS]") && !text.contains("/secret/place"), "{text}");
}

#[test]
fn variables_of_no_flag_are_named_once() {
    let work = scratch();
    let unknown = [("KILN_SERVE_QEUE", "7"), ("KILN_SERVE_ALLOW_HOSTS", "a"), ("KILN_SERVE_QUEUE", "5")];
    let output = serve(&["--print-config", &shapes()], &unknown, work.path()).output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("KILN_SERVE_")).collect();
    assert_eq!(lines, ["KILN_SERVE_ALLOW_HOSTS, KILN_SERVE_QEUE: no flag of kiln serve has such a variable"]);
}

#[test]
fn a_server_is_set_up_by_variables_alone() {
    let variables =
        [("KILN_SERVE_QUEUE_SHARE", "1"), ("KILN_SERVE_BATCH", "1"), ("KILN_SERVE_MAX_BODY", "1KiB")];
    let server = Server::start_with(&[], &variables);
    let body = json!({ "prompt": "x".repeat(2000), "steps": 1 });
    server.post("/v1/jobs", &body).expect(413);
}
