//! A queue as it is guarded on a network: by the configuration that kiln comes with, with keys and TLS.

use std::path::Path;
use std::process::Stdio;

use super::{Nats, free_port};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch};
use crate::server::{Server, eventually};
use crate::support::references;

/// The configuration that packages have, with this test's folders and keys.
fn configuration(folder: &Path, port: u16) -> String {
    let shipped = references().join("../../crates/kiln-cli/packaging/fleet/nats.conf");
    let mut text = std::fs::read_to_string(shipped).expect("a configuration");
    let place = |name: &str| folder.join(name).display().to_string();
    let mut put = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    };
    put("0.0.0.0:4222", &format!("127.0.0.1:{port}"));
    put("/var/lib/nats", &place("store"));
    put("/etc/nats/server.pem", &place("server.pem"));
    put("/etc/nats/server.key", &place("server.key"));
    for name in ["OPERATOR", "SERVER", "WORKER"] {
        let made = succeed(&mut kiln(&["fleet", "new-nkey", "someone", "--out", &place(name)], folder));
        let public = made.trim().strip_prefix("{ nkey: ").and_then(|rest| rest.split(' ').next());
        put(&format!("nkey: {name}"), &format!("nkey: {}", public.expect("a key")));
    }
    text
}

/// A certificate for this machine that vouches for itself.
fn certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let made = made.expect("a certificate");
    std::fs::write(folder.join("server.pem"), made.cert.pem()).expect("a file");
    std::fs::write(folder.join("server.key"), made.signing_key.serialize_pem()).expect("a file");
}

#[test]
fn the_shipped_configuration_lets_a_fleet_work_and_nobody_else_in() {
    onnxruntime();
    let (folder, away, port) = (scratch(), scratch(), free_port());
    certificate(folder.path());
    let config = configuration(folder.path(), port);
    std::fs::write(folder.path().join("nats.conf"), config).expect("a file");
    let place = |name: &str| folder.path().join(name).display().to_string();
    let [operator, serve, work, authority, log] =
        ["OPERATOR", "SERVER", "WORKER", "server.pem", "nats.log"].map(place);
    let nats = Nats::configured(folder, port);
    let url = format!("tls://localhost:{port}");
    let fleet = |words: &[&str], key: &str| {
        let way = ["--nats", &url, "--nats-nkey", key, "--nats-authority", &authority];
        kiln(&[&["fleet"], words, &way].concat(), away.path())
    };
    fail(&mut kiln(&["fleet", "new-nkey", "x", "--out", &operator], away.path()), 5, "is there already");
    let nobody = ["fleet", "status", "--nats", &url, "--nats-authority", &authority];
    fail(&mut kiln(&nobody, away.path()), 8, "cannot be reached: authorization violation");
    let unknown = ["fleet", "status", "--nats", &url, "--nats-nkey", &operator];
    fail(&mut kiln(&unknown, away.path()), 8, "cannot be reached");
    succeed(&mut fleet(&["init", "--keep-size", "1GiB"], &operator));

    let flags = ["--nats", &url, "--nats-nkey", &serve, "--nats-authority", &authority];
    let server = Server::start(&flags);
    let shapes = references().join("../../models/shapes").display().to_string();
    let way = ["--nats", &url, "--nats-nkey", &work, "--nats-authority", &authority];
    let words = [&["worker", &shapes, "--name", "one"], &way[..]].concat();
    let cache = scratch();
    let mut worker = kiln(&words, cache.path());
    let mut worker = worker.stderr(Stdio::null()).spawn().expect("kiln runs");
    let init = super::star(1, 3);
    let id = super::create(&server, &init);
    assert_eq!(super::ended(&server, &id)["status"], "done");
    let drawn = server.post("/v1/images/generations", &super::star(2, 3)).expect(200).json();
    assert!(drawn["data"][0]["b64_json"].is_string());
    let long = super::create(&server, &super::star(3, 150));
    eventually(|| Some(()).filter(|()| super::show(&server, &long)["step"].as_u64() > Some(0)));
    server.post(&format!("/v1/jobs/{long}/cancel"), &serde_json::json!({})).expect(202);
    assert_eq!(super::ended(&server, &long)["status"], "cancelled");
    server.request("DELETE", &format!("/v1/jobs/{id}"), &[], b"").expect(204);
    let status = succeed(&mut fleet(&["status"], &operator));
    assert!(status.contains("worker one"), "{status}");
    succeed(&mut fleet(&["drain", "one"], &operator));
    eventually(|| worker.try_wait().expect("a process"));
    let queued = super::create(&server, &super::star(4, 3));
    server.post(&format!("/v1/jobs/{queued}/cancel"), &serde_json::json!({})).expect(202);
    assert_eq!(super::ended(&server, &queued)["status"], "cancelled");

    let said = std::fs::read_to_string(&log).expect("a log");
    let refused: Vec<&str> = said.lines().filter(|line| line.contains("Permissions Violation")).collect();
    assert_eq!(refused, [""; 0], "{refused:?}");
    // With a worker's key nobody takes jobs, and with a server's nobody is handed any.
    let wrong = Server::start(&["--nats", &url, "--nats-nkey", &work, "--nats-authority", &authority]);
    wrong.post("/v1/jobs", &super::star(5, 3)).expect(507);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("Publish Violation") && said.contains("kiln.jobs.cpu."), "{said}");
    drop(nats);
}
