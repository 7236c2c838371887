//! By which names a server may be called.

use std::io::{BufReader, Write};

use serde_json::json;

use super::{Answer, Server, answer};
use crate::cli::{fail, kiln};
use crate::fixtures::scratch;

/// What a server answers to these bytes.
#[track_caller]
fn raw(server: &Server, text: &str) -> Answer {
    let mut stream = server.connect();
    stream.write_all(text.as_bytes()).expect("a request");
    answer(&mut BufReader::new(stream))
}

/// The status of a request that calls a server by a name.
#[track_caller]
fn called(server: &Server, host: &str) -> u16 {
    raw(server, &format!("GET /v1/jobs HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).status
}

#[test]
fn a_page_whose_name_is_made_to_stand_for_this_machine_is_refused() {
    let server = Server::start(&[]);
    for own in ["127.0.0.1", "[::1]:7860", "localhost:7860", "LOCALHOST", "kiln.localhost", "10.0.0.1:80", ""] {
        assert_eq!(called(&server, own), 200, "{own}");
    }
    for foreign in
        ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.nip.io", "u@localhost"]
    {
        assert_eq!(called(&server, foreign), 403, "{foreign}");
    }
    // Every way to say a name counts, and so does each of several.
    let status = |text: &str| raw(&server, text).status;
    assert_eq!(status("GET /v1/jobs HTTP/1.0\r\n\r\n"), 200);
    assert_eq!(status("GET /v1/jobs HTTP/1.0\r\nhost: evil.example\r\n\r\n"), 403);
    let twice = "GET /v1/jobs HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert!([400, 403].contains(&status(twice)));
    let whole = "GET http://evil.example/v1/jobs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert_eq!(status(whole), 403);
    let text =
        "POST /v1/jobs HTTP/1.1\r\nhost: \u{e9}vil.example\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(status(text), 403);
}

#[test]
fn refusals_are_in_the_words_of_the_path_and_name_the_flag() {
    let server = Server::start(&[]);
    let ask = |path: &str| {
        raw(&server, &format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"))
            .expect(403)
    };
    let message = "host: 'evil.example' is no name of this server, unless --allow-host gives it";
    for path in ["/", "/healthz", "/readyz", "/metrics", "/v1/jobs", "/v1/images/generations", "/nothing"] {
        let error = ask(path).json()["error"].clone();
        assert_eq!(
            (&error["message"], &error["code"]),
            (&json!(message), &json!("host_not_allowed")),
            "{path}"
        );
    }
    assert_eq!(ask("/sdapi/v1/options").json()["detail"], message);
    assert_eq!(ask("/v2/models/shapes").json(), json!({ "error": message }));
    // What it still sends is read before the answer.
    let body = "x".repeat(3 << 20);
    let head =
        format!("POST /v1/jobs HTTP/1.1\r\nhost: evil.example\r\ncontent-length: {}\r\n\r\n", body.len());
    raw(&server, &(head + &body)).expect(403);
}

#[test]
fn names_that_are_allowed_and_the_machines_own_are_taken() {
    let server = Server::start(&[
        "--allow-host",
        "Box.example",
        "--allow-host",
        "a.example,b.example",
        "--allow-origin",
        "https://o.example:8443",
    ]);
    for own in ["box.example:7860", "a.example", "b.example.", "o.example", "o.example:1", "localhost"] {
        assert_eq!(called(&server, own), 200, "{own}");
    }
    for foreign in ["sub.box.example", "example", "evil.example"] {
        assert_eq!(called(&server, foreign), 403, "{foreign}");
    }
    let uname = std::process::Command::new("uname").arg("-n").output().expect("uname runs");
    let machine = String::from_utf8(uname.stdout).expect("UTF-8");
    assert_eq!(called(&server, machine.trim()), 200);
    assert_eq!(called(&server, &format!("{}.local:80", machine.trim().to_uppercase())), 200);
    let work = scratch();
    for wrong in ["http://x", "x:80", "a b", "[::1]", "a/b"] {
        fail(&mut kiln(&["serve", "--allow-host", wrong, "--state", "s"], work.path()), 2, "is no host name");
    }
    let shapes = crate::support::references().join("../../models/shapes").display().to_string();
    let empty =
        kiln(&["serve", &shapes, "--print-config"], work.path()).env("KILN_SERVE_ALLOW_HOST", "").output();
    assert!(empty.expect("kiln runs").status.success());
    let mut printing = kiln(&["serve", &shapes, "--print-config"], work.path());
    let printed = printing.env("KILN_SERVE_ALLOW_HOST", "one.example,two.example").output().expect("kiln runs");
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("- one.example\n") && printed.contains("- two.example\n"), "{printed}");
}

#[test]
fn a_server_with_keys_is_guarded_by_them_alone() {
    let work = scratch();
    let made = kiln(&["serve", "--new-key", "ann"], work.path()).output().expect("kiln runs");
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    let key = said.trim().rsplit(' ').next().expect("a key");
    let keys = work.path().join("keys");
    std::fs::write(&keys, &made.stdout).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    assert_eq!(called(&server, "kiln.example"), 401);
    let text = format!("GET /v1/jobs HTTP/1.0\r\nhost: kiln.example\r\nauthorization: Bearer {key}\r\n\r\n");
    raw(&server, &text).expect(200);
}
