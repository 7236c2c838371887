//! A disk that takes nothing for a while: the system refuses every byte that the process writes into a file.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{Server, chunk, eventually, head, send};

/// Bounds the files that a server writes, while it runs; `u64::MAX` for no bound.
#[expect(unsafe_code, reason = "no other way bounds another process")]
fn bound_files(server: &Server, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    let pid = i32::try_from(server.child.id()).expect("a process");
    // SAFETY: the limit lives as long as the call, which writes nothing back; the process is a child that has not been
    // waited for.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The names of events, each as often as it came.
fn names(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// Reads events up to one of this name.
fn read_to(stream: &mut impl BufRead, name: &str) -> String {
    let (mut text, end) = (String::new(), format!("event: {name}\n"));
    while !text.contains(&end) {
        text += &String::from_utf8(chunk(stream).expect("an event")).expect("UTF-8");
    }
    text
}

#[test]
fn a_disk_that_takes_nothing_refuses_jobs_and_loses_none() {
    let server = Server::start(&[]);
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    let body = json!({ "prompt": "a cat", "steps": 100 });
    let id = server.post("/v1/jobs", &body).expect(202).json()["id"].as_str().expect("a name").to_owned();
    let path = format!("/v1/jobs/{id}");
    let mut stream = server.connect();
    send(&mut stream, "GET", &format!("{path}/events"), &[], b"");
    let mut events = BufReader::new(stream);
    head(&mut events).expect(200);
    let mut told = read_to(&mut events, "drawing");

    bound_files(&server, 1);
    let refused = server.post("/v1/jobs", &body).expect(507);
    assert!(!refused.text().contains(&*server.state.path().to_string_lossy()), "{}", refused.text());
    let state = server.get("/readyz").expect(503).json();
    assert_eq!((&state["ready"], &state["storage"]), (&json!(false), &json!(false)));
    assert_eq!(state["models"][0]["status"], "loaded");
    server.get("/healthz").expect(200);
    told += &read_to(&mut events, "saving");
    // The database is opened anew after an error, which such a disk refuses, too.
    let unread = server.get(&path).expect(507).json();
    assert_eq!(unread["error"]["message"], "jobs cannot be written down or read at the moment");
    // It is tried again each second, of which nothing is told.
    thread::sleep(Duration::from_millis(2500));
    server.get("/readyz").expect(503);
    server.post("/v1/jobs", &body).expect(507);
    // What needs no disk is drawn.
    server.post("/v1/images/generations", &json!({ "prompt": "x", "steps": 2 })).expect(200);

    bound_files(&server, u64::MAX);
    told += &read_to(&mut events, "done");
    assert!(chunk(&mut events).is_none(), "events end with the job");
    let told: Vec<&str> =
        names(&told).into_iter().filter(|name| ["saving", "done", "error"].contains(name)).collect();
    assert_eq!(told, ["saving", "done"]);
    assert_eq!(server.get(&path).expect(200).json()["status"], "done");
    assert_eq!(server.get(&format!("{path}/pictures/0")).expect(200).header("content-type"), Some("image/png"));
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    server.post("/v1/jobs", &body).expect(202);
}
