//! Flags of `kiln serve` in the models file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;
use crate::support::references;

/// A models file in `folder` that says besides what `settings` says.
fn write(folder: &Path, settings: &str) -> String {
    let shapes = references().join("../../models/shapes").display().to_string();
    let path = folder.join("models.yaml");
    fs::write(&path, format!("models:\n- {{name: shapes, bundle: {shapes:?}}}\n{settings}")).expect("a file");
    path.display().to_string()
}

fn config(flags: &[&str], variables: &[(&str, &str)], folder: &Path) -> Value {
    let mut command = kiln(&[&["serve", "--print-config"], flags].concat(), folder);
    serde_yaml::from_str(&succeed(command.envs(variables.iter().copied()))).expect("YAML")
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let work = scratch();
    let file =
        write(work.path(), "queue: 9\nallow_strangers: true\nallow_host: [a.example, b.example]\nidle:\n");
    let queue = |flags: &[&str], variables: &[(&str, &str)]| {
        config(&[&[&*file], flags].concat(), variables, work.path())["queue"].clone()
    };
    let variable = [("KILN_SERVE_QUEUE", "5")];
    assert_eq!([queue(&[], &[]), queue(&[], &variable), queue(&["--queue", "3"], &variable)], [9, 5, 3]);
    let printed = config(&[], &[("KILN_SERVE_MODELS", &file)], work.path());
    assert_eq!(printed["allow_strangers"], true);
    assert_eq!(printed["idle"], 600, "what the file leaves empty is the default");
    assert_eq!(printed["allow_host"].as_array().expect("names")[..2], ["a.example", "b.example"]);
    let printed = config(&[&file, "--allow-host", "c.example"], &[], work.path());
    assert!(!printed["allow_host"].to_string().contains("a.example"), "{printed}");
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let work = scratch();
    let flags =
        ["--queue", "9", "--keep-size", "2GiB", "--allow-strangers", "--allow-origin", "https://a.example"];
    let printed = config(&[&[&*write(work.path(), "")], &flags[..]].concat(), &[], work.path());
    assert_eq!((&printed["queue"], &printed["allow_strangers"]), (&json!(9), &json!(true)));
    let file = work.path().join("printed.yaml");
    fs::write(&file, serde_yaml::to_string(&printed).expect("YAML")).expect("a file");
    assert_eq!(config(&[&file.display().to_string()], &[], work.path()), printed);
}

#[test]
fn paths_are_relative_to_the_file() {
    let work = scratch();
    let elsewhere = scratch();
    let line = succeed(&mut kiln(&["serve", "--new-key", "ann"], work.path()));
    fs::write(work.path().join("keys.txt"), line).expect("a file");
    let file = write(work.path(), "keys: keys.txt\nstate: state\n");
    let printed = config(&[&file], &[], elsewhere.path());
    assert_eq!(printed["keys"], json!(work.path().join("keys.txt")));
    assert_eq!(printed["state"], json!(work.path().join("state")));
}

#[test]
fn what_is_printed_says_the_same_in_another_folder() {
    let work = scratch();
    let line = succeed(&mut kiln(&["serve", "--new-key", "ann"], work.path()));
    fs::write(work.path().join("keys.txt"), line).expect("a file");
    fs::create_dir(work.path().join("below")).expect("a folder");
    write(work.path(), "keys: keys.txt\n");
    let printed = config(&["models.yaml"], &[], work.path());
    fs::write(work.path().join("below/all.yaml"), serde_yaml::to_string(&printed).expect("YAML"))
        .expect("a file");
    assert_eq!(config(&["below/all.yaml"], &[], work.path()), printed);
    assert!(printed["keys"].as_str().is_some_and(|keys| Path::new(keys).is_absolute()), "{printed}");
}

#[test]
fn what_is_wrong_is_told_with_file_and_key() {
    let work = scratch();
    let cases = [
        ("qeue: 7", "qeue: kiln serve has no such flag"),
        ("print_config: true", "print_config: kiln serve has no such flag"),
        ("new_key: ann", "new_key: kiln serve has no such flag"),
        ("queue: many", "queue: invalid value 'many' for '--queue <N>'"),
        ("queue: -1", "queue: invalid value '-1' for '--queue <N>'"),
        ("queue: [1, 2]", "queue: is not a text or a number"),
        ("queue: true", "queue: is not a text or a number"),
        ("allow_strangers: 1", "allow_strangers: is not true or false"),
        ("allow_origin: [https://a.example, '*']", "allow_origin: invalid value '*'"),
        ("tls_key: key.pem", "tls_key: the following required arguments were not provided: --tls-certificate"),
    ];
    for (settings, told) in cases {
        let file = write(work.path(), settings);
        fail(&mut kiln(&["serve", &file], work.path()), 2, &format!("error: {file}: {told}"));
    }
    // One of the command line is the flag's.
    let file = write(work.path(), "queue: 7");
    fail(
        &mut kiln(&["serve", &file, "--idle", "long"], work.path()),
        2,
        "error: invalid value 'long' for '--idle",
    );
}
