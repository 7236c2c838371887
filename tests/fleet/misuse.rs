//! What is told of a fleet that cannot be used.

use super::Nats;
use crate::cli::{fail, kiln};
use crate::fixtures::scratch;

#[test]
fn a_queue_that_is_not_there_is_named() {
    let work = scratch();
    let url = "nats://me:secret@127.0.0.1:1";
    for words in [
        &["worker", "--nats", url][..],
        &["fleet", "status", "--nats", url],
        &["serve", "--nats", url, "--listen", "127.0.0.1:0"],
    ] {
        let output = fail(&mut kiln(words, work.path()), 8, "error: nats://127.0.0.1:1: cannot be reached");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("secret"));
    }
    fail(&mut kiln(&["worker"], work.path()), 2, "KILN_WORKER_NATS for kiln worker");
    let mut none = kiln(&["fleet", "status"], work.path());
    fail(&mut none, 2, "--nats: says where the fleet's queue is, and is missing");
    fail(&mut kiln(&["worker", "--nats", "nats://127.0.0.1:1", "--no-fetch"], work.path()), 2, "--no-fetch");
    fail(&mut kiln(&["worker", "--nats", "x", "--fleet", "a b"], work.path()), 2, "is no name of up to 32");
}

#[test]
fn files_that_let_nobody_in_are_named() {
    let (nats, work) = (Nats::start(), scratch());
    std::fs::write(work.path().join("seed"), "nothing").expect("a file");
    let refuse = |flag: &str, file: &str, code: i32, message: &str| {
        let mut command = nats.fleet_command(&["status", flag, file]);
        fail(command.current_dir(work.path()), code, message);
    };
    refuse("--nats-nkey", "seed", 5, "error: seed: is no user's nkey seed");
    refuse("--nats-nkey", "none", 5, "error: none: No such file");
    refuse("--nats-credentials", "seed", 5, "error: seed: no credentials");
    refuse("--nats-authority", "none", 5, "error: none: No such file");
}

#[test]
fn settings_that_make_no_fleet_are_refused() {
    let nats = Nats::start();
    let refuse = |words: &[&str], message: &str| {
        fail(&mut nats.fleet_command(&[&["init"], words].concat()), 8, message);
    };
    refuse(&["--attempts", "0"], "attempts: 0 allows nothing");
    refuse(&["--keep-size", "1"], "keep-size: 1 bytes are less than the 16 MiB that pictures need");
    refuse(&["--lease", "1"], "lease: 1 s is less than");
    refuse(&["--results", "ftp://host"], "ftp://host: is neither s3://BUCKET/PREFIX nor the absolute path");
    let shown = nats.fleet(&["init", "--lease", "7"]);
    assert!(shown.contains("lease     7 s") && shown.contains("attempts  3"), "{shown}");
    let shown = nats.fleet(&["init", "--attempts", "5"]);
    assert!(shown.contains("lease     7 s") && shown.contains("attempts  5"), "{shown}");
    // What is there already changes, too.
    let server = nats.server(&[]);
    nats.fleet(&["init", "--keep-size", "1GiB", "--keep-hours", "2"]);
    assert_eq!(nats.fleet_json("status")["settings"]["keep_bytes"], 1 << 30);
    let told = nats.monitored("OBJ_kiln-pictures");
    assert_eq!(
        (&told["max_bytes"], &told["max_age"]),
        (&(1u64 << 30).into(), &7_200_000_000_000u64.into()),
        "{told}"
    );
    drop(server);
    fail(&mut nats.fleet_command(&["retry", "x"]), 2, "job x: is no name of a job");
    let unknown = "0123456789abcdef0123456789abcdef";
    fail(&mut nats.fleet_command(&["retry", unknown]), 2, "is not one that was given up");
}

#[test]
fn a_server_with_too_little_storage_is_told_and_a_smaller_fleet_fits() {
    let (folder, port) = (scratch(), super::free_port());
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\", max_file_store: 300MB }}\n",
        folder.path().join("store").display()
    );
    std::fs::write(folder.path().join("nats.conf"), config).expect("a file");
    let nats = Nats::configured(folder, port);
    fail(&mut nats.fleet_command(&["status"]), 8, "the server has too little storage for it; kiln fleet init");
    nats.fleet(&["init", "--keep-size", "200MiB"]);
    let server = nats.server(&[]);
    let _worker = super::FleetWorker::start(&nats, "one", &[]);
    let id = super::create(&server, &super::star(1, 2));
    assert_eq!(super::ended(&server, &id)["status"], "done");
}
