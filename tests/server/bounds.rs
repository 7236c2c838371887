//! What clients may take together: memory of pictures and bodies, connections; and who may still come in.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::operation::new_key;
use super::{Server, answer, eventually};
use crate::fixtures::scratch;

const HUP: i32 = 1;

/// A black picture of 8192 x 8192 pixels in a file of some kilobytes, in base64.
fn bomb() -> String {
    const SIDE: u32 = 8192;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIDE, SIDE);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&vec![0; (SIDE * SIDE / 8) as usize]).expect("pixels");
    writer.finish().expect("a file");
    assert!(file.len() < 32 << 10, "{} bytes", file.len());
    BASE64_STANDARD.encode(file)
}

/// The most memory that the process has had, in bytes.
#[cfg(target_os = "linux")]
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

#[cfg(target_os = "linux")]
#[test]
fn many_small_files_of_large_pictures_take_bounded_memory() {
    let server = Server::start(&[]);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    let before = peak(&server);
    let bomb = bomb();
    let tensor =
        |name: &str, data: Value| json!({ "name": name, "datatype": "BYTES", "shape": [1], "data": [data] });
    let inputs = json!([tensor("prompt", json!("x")), tensor("init_image", json!(bomb))]);
    let bodies = [
        ("/v1/jobs", json!({ "prompt": "x", "steps": 2, "init_image": bomb, "width": 64, "height": 64 })),
        ("/v1/jobs", json!({ "prompt": "x", "steps": 1, "init_image": bomb })),
        ("/v1/images/edits", json!({ "prompt": "x", "steps": 2, "image": bomb, "size": "64x64" })),
        (
            "/sdapi/v1/img2img",
            json!({ "prompt": "x", "steps": 2, "init_images": [bomb], "width": 64, "height": 64 }),
        ),
        ("/sdapi/v1/png-info", json!({ "image": bomb })),
        ("/v2/models/shapes/infer", json!({ "inputs": inputs })),
    ];
    let statuses: Vec<u16> = thread::scope(|scope| {
        let all = bodies.iter().cycle().take(12);
        let all: Vec<_> = all.map(|(path, body)| scope.spawn(|| server.post(path, body).status)).collect();
        all.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    assert_eq!(&statuses[..3], [202, 400, 200], "{statuses:?}");
    assert!(statuses.iter().all(|status| *status < 500), "{statuses:?}");
    let grown = peak(&server) - before;
    assert!(grown < 1200 << 20, "{} MiB", grown >> 20);
}

#[test]
fn requests_without_pictures_do_not_wait_for_those_with() {
    const N: usize = 8;
    let server = Server::start(&[]);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    let (bomb, n_read) = (bomb(), &AtomicUsize::new(0));
    let pictures = json!({ "prompt": "x", "steps": 2, "init_image": bomb, "width": 64, "height": 64 });
    let texts = [
        ("/v1/jobs", json!({ "prompt": "x", "steps": 1 })),
        ("/sdapi/v1/txt2img", json!({ "prompt": "x", "steps": 2 })),
        ("/v1/images/generations", json!({ "prompt": "x", "steps": 2 })),
        ("/hf/shapes", json!({ "inputs": "x", "parameters": { "num_inference_steps": 2 } })),
        (
            "/v2/models/shapes/infer",
            json!({ "inputs": [
            { "name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["x"] },
            { "name": "steps", "datatype": "INT32", "shape": [1], "data": [2] }] }),
        ),
    ];
    thread::scope(|scope| {
        for _ in 0..N {
            scope.spawn(|| {
                server.post("/v1/jobs", &pictures).expect(202);
                n_read.fetch_add(1, Ordering::SeqCst);
            });
        }
        // All of them wait for a place, or have one.
        thread::sleep(Duration::from_millis(200));
        for (path, body) in &texts {
            let server = &server;
            scope.spawn(move || {
                let answer = server.post(path, body);
                let n_read = n_read.load(Ordering::SeqCst);
                assert!(answer.status < 300, "{path}: {}", answer.text());
                assert!(n_read < N - 2, "{path} has waited for {n_read} pictures");
            });
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn bodies_that_are_never_finished_take_bounded_memory() {
    let server = Server::start(&[]);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    let before = peak(&server);
    let begin = |_| {
        let mut stream = server.connect();
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 65011712\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("a head");
        let chunk = vec![b' '; 1 << 20];
        // Where there is no room the server does not read on.
        let _ = (0..61).try_for_each(|_| stream.write_all(&chunk));
        stream
    };
    let streams: Vec<TcpStream> = thread::scope(|scope| {
        let all: Vec<_> = (0..10).map(|i| scope.spawn(move || begin(i))).collect();
        all.into_iter().map(|one| one.join().expect("a connection")).collect()
    });
    server.get("/healthz").expect(200);
    let grown = peak(&server) - before;
    assert!(grown < 450 << 20, "{} MiB", grown >> 20);
    drop(streams);
    eventually(|| {
        Some(()).filter(|()| server.post("/v1/jobs", &json!({ "prompt": "x", "steps": 1 })).status == 202)
    });
}

#[test]
fn a_key_is_revoked_without_a_restart() {
    let work = scratch();
    let ((ann, of_ann), (bob, of_bob)) = (new_key("ann", work.path()), new_key("bob", work.path()));
    let keys = work.path().join("keys");
    std::fs::write(&keys, format!("{of_ann}{of_bob}")).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    let status = |key: &str| {
        server.request("GET", "/v1/jobs", &[("authorization", &format!("Bearer {key}"))], b"").status
    };
    assert_eq!([status(&ann), status(&bob)], [200, 200]);
    std::fs::write(&keys, &of_bob).expect("a file");
    server.signal(HUP);
    eventually(|| Some(()).filter(|()| status(&ann) == 401));
    assert_eq!(status(&bob), 200);
    for wrong in ["nonsense", ""] {
        std::fs::write(&keys, wrong).expect("a file");
        server.signal(HUP);
        thread::sleep(Duration::from_millis(300));
        assert_eq!([status(&ann), status(&bob)], [401, 200], "a wrong file changes nothing");
    }
}

#[test]
fn pages_of_allowed_origins_may_send_what_clients_send() {
    let server = Server::start(&["--allow-origin", "https://a.example"]);
    let asked = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let preflight = server.request("OPTIONS", "/v1/jobs", &asked, b"");
    let allowed = preflight.header("access-control-allow-headers").expect("headers").to_owned();
    let names: Vec<&str> = allowed.split(',').map(str::trim).collect();
    for name in ["authorization", "content-type", "idempotency-key", "x-request-id", "traceparent"] {
        assert!(names.contains(&name), "{name}: {allowed}");
    }
    let answer = server.request("GET", "/healthz", &[("origin", "https://a.example")], b"").expect(200);
    let exposed = answer.header("access-control-expose-headers").expect("headers");
    assert!(exposed.contains("retry-after") && exposed.contains("x-request-id"), "{exposed}");
}

#[test]
fn what_cannot_be_drawn_is_refused_before_it_waits() {
    let server = Server::start(&[]);
    let text = server.post("/v1/jobs", &json!({ "prompt": "x", "clip_skip": 64 })).expect(400).text();
    assert!(text.contains("clip skip: 64 is more than"), "{text}");
    let last = json!({ "prompt": "x", "steps": 1, "clip_skip": 99_999_999_999u64 });
    for path in ["/sdapi/v1/txt2img", "/v1/images/generations", "/v1/jobs"] {
        server.post(path, &last).expect(400);
    }
}

#[test]
fn answers_are_measured_by_the_template_of_their_path() {
    let server = Server::start(&[]);
    server.get("/v1/jobs/nobody-knows-it").expect(404);
    server.get("/no/such/path").expect(404);
    let mut stream = server.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("a head");
    let text = answer(&mut BufReader::new(&stream)).expect(200).text();
    for part in ["route=\"/v1/jobs/{id}\",status=\"4xx\"", "route=\"other\",status=\"4xx\"", "pool=\"weights\""]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("nobody-knows-it"));
}

/// Raises the limit of open files of this process as far as it goes, and gives it.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no other way asks for limits")]
fn file_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a limit that lives as long as they run.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

#[cfg(target_os = "linux")]
#[test]
fn thousands_of_silent_connections_hold_nobody_up_and_are_closed() {
    let n = (file_limit() / 2).min(2000);
    let server = Server::start(&[]);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    let (before, begun) = (peak(&server), Instant::now());
    let mut streams: Vec<TcpStream> = (0..n).map(|_| server.connect()).collect();
    // Half of them have said something before they fall silent.
    for stream in streams.iter_mut().step_by(2) {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("a head");
    }
    for stream in streams.iter_mut().step_by(2) {
        answer(&mut BufReader::new(stream)).expect(200);
    }
    for _ in 0..20 {
        let asked = Instant::now();
        server.get("/healthz").expect(200);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    server.post("/v1/images/generations", &json!({ "prompt": "x", "steps": 2 })).expect(200);
    let grown = (peak(&server) - before) / n as u64;
    assert!(grown < 32 << 10, "{grown} bytes for each connection");
    for (i, stream) in streams.iter_mut().enumerate() {
        let rest = stream.read_to_end(&mut Vec::new());
        assert!(matches!(rest, Ok(0)), "connection {i}: {rest:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}
