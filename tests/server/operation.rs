//! What an operator sees: keys, limits, health, signals.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Server, answer, eventually, send};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{scratch, sd15, tiny};

const TERM: i32 = 15;
const HUP: i32 = 1;

/// A new API key, and its line for the file of keys.
pub(super) fn new_key(name: &str, folder: &Path) -> (String, String) {
    let output = kiln(&["serve", "--new-key", name], folder).output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let key = said.trim().rsplit(' ').next().expect("a key").to_owned();
    (key, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_path_but_health_asks_for_the_key() {
    let work = scratch();
    let ((_, line), (key, bob)) = (new_key("ann", work.path()), new_key("bob", work.path()));
    let keys = work.path().join("keys");
    std::fs::write(&keys, format!("# who may come in\n{line}{bob}")).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    for path in ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"] {
        assert_ne!(server.get(path).status, 401, "{path}");
    }
    for path in ["/", "/metrics", "/v1/jobs", "/v1/models", "/sdapi/v1/options", "/v2", "/nothing", "/docs"] {
        let refused = server.get(path).expect(401);
        assert!(refused.json()["error"].is_object() || refused.json()["error"].is_string(), "{path}");
    }
    let with = |value: &str| server.request("GET", "/v1/jobs", &[("authorization", value)], b"").status;
    assert_eq!(with(&format!("Bearer {key}")), 200);
    assert_eq!(with(&format!("bearer {key}")), 200);
    use base64::Engine;
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("anyone:{key}"));
    assert_eq!(with(&format!("Basic {basic}")), 200);
    for wrong in ["Bearer x", "Basic ", "Basic !", "Bearer ", &key, "Digest x"] {
        assert_eq!(with(wrong), 401, "{wrong}");
    }
    // A large upload of a stranger is read before the answer.
    let upload = vec![b'x'; 3 << 20];
    server.request("POST", "/v1/jobs", &[], &upload).expect(401);
}

#[test]
fn jobs_belong_to_their_key() {
    let work = scratch();
    let ((ann, line_of_ann), (bob, line_of_bob)) = (new_key("ann", work.path()), new_key("bob", work.path()));
    let keys = work.path().join("keys");
    std::fs::write(&keys, line_of_ann + &line_of_bob).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string(), "--queue-share", "2", "--batch", "1"]);
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        server.request(method, path, &[("authorization", &format!("Bearer {key}"))], body.as_bytes())
    };
    let body = r#"{"prompt":"a cat","steps":150}"#;
    let first =
        ask(&ann, "POST", "/v1/jobs", body).expect(202).json()["id"].as_str().expect("a name").to_owned();
    let path = format!("/v1/jobs/{first}");
    ask(&ann, "GET", &path, "").expect(200);
    ask(&bob, "GET", &path, "").expect(404);
    ask(&bob, "POST", &format!("{path}/cancel"), "").expect(404);
    eventually(|| Some(()).filter(|()| ask(&ann, "GET", &path, "").json()["status"] == "drawing"));
    // One is drawn, two wait: that is all of a key's share.
    ask(&ann, "POST", "/v1/jobs", body).expect(202);
    ask(&ann, "POST", "/v1/jobs", body).expect(202);
    let full = ask(&ann, "POST", "/v1/jobs", body).expect(429);
    let after: u64 = full.header("retry-after").and_then(|after| after.parse().ok()).expect("a number");
    assert!((1..=59).contains(&after), "{after}");
    // The other key's job is drawn before the first one's second.
    let of_bob = ask(&bob, "POST", "/v1/jobs", body).expect(202).json();
    assert_eq!(of_bob["position"], 1, "{of_bob}");
}

#[test]
fn a_key_has_its_rate() {
    let work = scratch();
    let (key, line) = new_key("ann", work.path());
    let keys = work.path().join("keys");
    let line = line.trim();
    std::fs::write(&keys, format!("{line}:3\n")).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    let bearer = format!("Bearer {key}");
    let post =
        || server.request("POST", "/v1/jobs", &[("authorization", &bearer)], br#"{"prompt":"x","steps":1}"#);
    (0..3).for_each(|_| drop(post().expect(202)));
    let refused = post().expect(429);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    let after: u64 = refused.header("retry-after").and_then(|after| after.parse().ok()).expect("a number");
    assert!((1..=59).contains(&after), "{after}");
    server.request("GET", "/v1/jobs", &[("authorization", &bearer)], b"").expect(200);
}

#[test]
fn a_server_that_others_reach_needs_a_key() {
    let work = scratch();
    let message = "0.0.0.0:0 can be reached from other machines, and no key guards it";
    fail(&mut kiln(&["serve", "--listen", "0.0.0.0:0", "--state", "s"], work.path()), 2, message);
    fail(&mut kiln(&["serve", "--listen", "nowhere"], work.path()), 2, "--listen");
    fail(&mut kiln(&["serve", "missing.yaml"], work.path()), 3, "missing.yaml");
    std::fs::write(work.path().join("models.yaml"), "models: [{name: ../x, bundle: x}]").expect("a file");
    fail(&mut kiln(&["serve", "models.yaml"], work.path()), 3, "name: '../x' is not up to 64 letters");
    std::fs::write(work.path().join("models.yaml"), "models: [{name: a, bundle: nowhere}]").expect("a file");
    fail(&mut kiln(&["serve", "models.yaml"], work.path()), 3, "model a: nowhere: no such folder");
    std::fs::write(work.path().join("keys"), "nonsense").expect("a file");
    fail(&mut kiln(&["serve", "--keys", "keys"], work.path()), 3, "line 1 is not NAME:HASH");
}

#[test]
fn every_flag_is_printed_with_what_it_comes_to() {
    let work = scratch();
    let shapes = crate::support::references().join("../../models/shapes").display().to_string();
    let help = succeed(&mut kiln(&["serve", "--help"], work.path()));
    let flags =
        help.lines().filter_map(|line| line.trim_start_matches("  -h, ").trim_start().strip_prefix("--"));
    let flags = flags.filter_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next());
    let flags: Vec<String> = flags.map(|flag| flag.replace('-', "_")).collect();
    assert!(flags.len() > 25, "{flags:?}");
    let printed = |extra: &[&str]| {
        let args = [&["serve", &shapes, "--print-config"], extra].concat();
        let text = succeed(kiln(&args, work.path()).env("KILN_SERVE_LISTEN", "[::1]:81"));
        serde_yaml::from_str::<serde_json::Value>(&text).expect("YAML")
    };
    let config = printed(&[]);
    for flag in flags.iter().filter(|flag| !["new_key", "print_config", "help"].contains(&flag.as_str())) {
        assert!(config.get(flag).is_some(), "--{flag} is not printed");
    }
    let expected = [
        ("listen", json!("[::1]:81")),
        ("queue", json!(64)),
        ("queue_share", json!(64)),
        ("max_body", json!("64MiB")),
        ("allow_strangers", json!(false)),
        ("allow_origin", json!([])),
        ("keys", json!(null)),
        ("offload", json!("none")),
    ];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
    let model = &config["models"][0];
    assert_eq!(
        (&model["name"], &model["preload"], &model["limits"]["side"]),
        (&json!("shapes"), &json!(true), &json!(2048))
    );
    assert!(config["state"].as_str().is_some_and(|state| state.ends_with("serve")));
    let origins =
        ["--allow-origin", "https://a.example", "--allow-origin", "https://b.example", "--queue", "7"];
    let config = printed(&origins);
    assert_eq!(config["allow_origin"], json!(["https://a.example", "https://b.example"]));
    assert_eq!((&config["queue"], &config["queue_share"]), (&json!(7), &json!(7)));
}

#[test]
fn starts_that_fail_take_no_attempt_from_open_jobs() {
    let mut server = Server::start(&["--batch", "1"]);
    let ids: Vec<String> = (0..2)
        .map(|_| server.post("/v1/jobs", &json!({ "prompt": "a cat", "steps": 60 })).expect(202).json())
        .map(|job| job["id"].as_str().expect("a name").to_owned())
        .collect();
    server.child.kill().expect("a process");
    server.wait();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let state = server.state.path().join("state").display().to_string();
    let shapes = crate::support::references().join("../../models/shapes").display().to_string();
    for _ in 0..4 {
        let args = ["serve", &shapes, "--listen", &address, "--state", &state];
        fail(&mut kiln(&args, server.state.path()), 5, "in use");
    }
    server.restart();
    for id in ids {
        let ended = eventually(|| {
            Some(server.get(&format!("/v1/jobs/{id}")).json()).filter(|job| job["ended"].is_u64())
        });
        assert_eq!(ended["status"], "done", "{ended}");
    }
}

#[test]
fn models_are_read_anew_and_jobs_go_on() {
    let work = scratch();
    let models = work.path().join("models.yaml");
    let shapes = crate::support::references().join("../../models/shapes");
    let model = |name: &str, path: &Path| format!("- {{name: {name}, bundle: '{}'}}\n", path.display());
    std::fs::write(&models, format!("models:\n{}", model("shapes", &shapes))).expect("a file");
    let server = Server::start(&[&models.display().to_string()]);
    let job = server.post("/v1/jobs", &json!({ "prompt": "a cat", "steps": 60 })).expect(202).json();
    let wide = json!({ "prompt": "a cat", "steps": 2, "model": "small", "width": 64, "height": 64 });
    server.post("/v1/jobs", &wide).expect(404);
    std::fs::write(&models, format!("models:\n{}{}", model("shapes", &shapes), model("small", &sd15())))
        .expect("a file");
    server.signal(HUP);
    let names = || {
        let models = server.get("/readyz").json()["models"].clone();
        let names = models.as_array().expect("models").iter().map(|model| model["name"].clone());
        serde_json::Value::from_iter(names)
    };
    eventually(|| Some(()).filter(|()| names() == json!(["shapes", "small"])));
    let second = server.post("/v1/jobs", &wide).expect(202).json();
    for job in [job, second] {
        let path = format!("/v1/jobs/{}", job["id"].as_str().expect("a name"));
        let ended = eventually(|| Some(server.get(&path).json()).filter(|job| job["ended"].is_u64()));
        assert_eq!(ended["status"], "done", "{ended}");
    }
    for wrong in ["models: nonsense".into(), format!("models:\n{}qeue: 7\n", model("small", &sd15()))] {
        std::fs::write(&models, wrong).expect("a file");
        server.signal(HUP);
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(names(), json!(["shapes", "small"]));
    }
}

/// A checkpoint's bundle.
fn bundle(checkpoint: &Path, folder: &Path) -> String {
    succeed(&mut kiln(&["compile", &checkpoint.display().to_string()], folder)).trim().to_owned()
}

#[test]
fn a_server_is_ready_when_what_it_preloads_is_loaded() {
    let (work, other) = (scratch(), scratch());
    let shapes = crate::support::references().join("../../models/shapes");
    let (good, spoilt) = (bundle(&shapes, work.path()), bundle(tiny().path(), other.path()));
    let file = |name: &str, models: &[(&str, &str, bool)]| {
        let model = |(name, bundle, preload): &(&str, &str, bool)| {
            format!("- {{name: {name}, bundle: '{bundle}', preload: {preload}}}\n")
        };
        let path = work.path().join(name);
        let text: String = models.iter().map(model).collect();
        std::fs::write(&path, format!("models:\n{text}")).expect("a file");
        path.display().to_string()
    };
    let models = file("models.yaml", &[("first", &good, true), ("later", &good, false)]);
    let server = Server::start(&[&models]);
    let ready = eventually(|| Some(server.get("/readyz")).filter(|answer| answer.status == 200)).json();
    let expected = json!([{ "name": "first", "status": "loaded", "preload": true },
                          { "name": "later", "status": "unloaded", "preload": false }]);
    assert_eq!((&ready["ready"], &ready["models"]), (&json!(true), &expected));
    let later = server.get("/readyz/later").expect(200).json();
    assert_eq!((&later["ready"], &later["status"]), (&json!(true), &json!("unloaded")));
    assert_eq!(server.get("/readyz/none").expect(404).json()["error"]["code"], "model_not_found");
    let drawn = json!({ "prompt": "a cat", "steps": 1, "model": "later" });
    server.post("/v1/jobs", &drawn).expect(202);
    eventually(|| Some(()).filter(|()| server.get("/readyz/later").json()["status"] == "loaded"));

    // One that is preloaded from now on cannot be loaded: the server says which, and not where it is.
    let busy = json!({ "prompt": "a cat", "steps": 150, "n": 8, "model": "first" });
    let busy = server.post("/v1/jobs", &busy).expect(202).json()["id"].as_str().expect("a name").to_owned();
    eventually(|| Some(()).filter(|()| server.get(&format!("/v1/jobs/{busy}")).json()["status"] == "drawing"));
    file("models.yaml", &[("first", &good, true), ("bad", &spoilt, true), ("later", &good, false)]);
    server.signal(HUP);
    let bad = eventually(|| Some(server.get("/readyz/bad")).filter(|answer| answer.status != 404)).expect(503);
    assert_eq!((&bad.json()["status"], &bad.json()["ready"]), (&json!("unloaded"), &json!(false)));
    server.get("/readyz").expect(503);
    std::fs::remove_file(Path::new(&spoilt).join("unet.0.onnx")).expect("a file");
    server.request("POST", &format!("/v1/jobs/{busy}/cancel"), &[], b"").expect(202);
    let bad = eventually(|| Some(server.get("/readyz/bad")).filter(|answer| answer.text().contains("failed")));
    assert_eq!(bad.expect(503).json()["error"], "the model cannot be used; the server's log says why");
    let whole = server.get("/readyz").expect(503);
    assert_eq!(
        (&whole.json()["ready"], &whole.json()["models"][1]["status"]),
        (&json!(false), &json!("failed"))
    );
    assert!(!whole.text().contains(&*other.path().to_string_lossy()), "{}", whole.text());
    server.get("/readyz/first").expect(200);
    server.get("/readyz/later").expect(200);
    // It is good when it is mended.
    file("models.yaml", &[("first", &good, true), ("bad", &good, true), ("later", &good, false)]);
    server.signal(HUP);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
}

#[test]
fn a_server_that_ends_finishes_what_it_draws_and_keeps_what_waits() {
    let mut server = Server::start(&["--batch", "1"]);
    let body = json!({ "prompt": "a cat", "steps": 100 });
    let ids: Vec<String> = (0..3)
        .map(|_| server.post("/v1/jobs", &body).expect(202).json()["id"].as_str().expect("a name").to_owned())
        .collect();
    let status = |server: &Server, id: &str| server.get(&format!("/v1/jobs/{id}")).json()["status"].clone();
    eventually(|| Some(()).filter(|()| status(&server, &ids[0]) == "drawing"));
    server.signal(TERM);
    assert!(server.wait().success());
    server.restart();
    assert_eq!(status(&server, &ids[0]), "done");
    for id in &ids {
        eventually(|| Some(()).filter(|()| status(&server, id) == "done"));
    }
}

#[test]
fn bodies_and_heads_have_bounds() {
    let server = Server::start(&["--max-body", "1MiB"]);
    let large = vec![b' '; 3 << 20];
    let refused = server.request("POST", "/v1/jobs", &[], &large).expect(413);
    assert_eq!(refused.json()["error"]["code"], "too_large");
    server.request("DELETE", "/v1/jobs", &[], b"").expect(405);
    server.get("/v1/jobs/x/y/z").expect(404);
    server.request("GET", "/healthz", &[("x-filler", &"x".repeat(100 << 10))], b"").expect(431);
    // A length that is never sent holds nobody up.
    let mut stalled = server.connect();
    stalled
        .write_all(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n{")
        .expect("a head");
    let begun = Instant::now();
    server.get("/healthz").expect(200);
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Nonsense is answered or cut off, and the server lives.
    for nonsense in [&b"\x16\x03\x01\x00\xa5"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0; 4096]] {
        let mut stream = server.connect();
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    server.get("/healthz").expect(200);
}

#[test]
fn one_connection_takes_several_requests() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    stream
        .write_all(
            b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n",
        )
        .expect("two heads");
    let mut stream = BufReader::new(stream);
    assert_eq!(answer(&mut stream).expect(200).json(), json!({ "live": true }));
    assert!(answer(&mut stream).json()["ready"].is_boolean());
    let mut asked = server.connect();
    send(&mut asked, "HEAD", "/healthz", &[], b"");
    let head = super::head(&mut BufReader::new(asked)).expect(200);
    assert!(head.header("x-request-id").is_some());
    let named = server.request("GET", "/healthz", &[("x-request-id", "mine-1")], b"");
    assert_eq!(named.header("x-request-id"), Some("mine-1"));
    let metrics = server.get("/metrics").expect(200).text();
    assert!(metrics.contains("kiln_queue_depth 0") && metrics.ends_with("# EOF\n"), "{metrics}");
}
