//! A worker that does not get on: who asks is told, and so is the supervisor.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::{Server, eventually};
use crate::fixtures::scratch;

/// Counts what a supervisor hears of the watchdog.
fn supervisor(socket: &Path) -> Arc<AtomicUsize> {
    let (socket, beats) = (UnixDatagram::bind(socket).expect("a socket"), Arc::new(AtomicUsize::new(0)));
    let heard = beats.clone();
    thread::spawn(move || {
        let mut message = [0; 256];
        while let Ok(n) = socket.recv(&mut message) {
            let is_beat = message[..n].windows(10).any(|part| part == b"WATCHDOG=1");
            heard.fetch_add(is_beat.into(), Ordering::SeqCst);
        }
    });
    beats
}

/// Beats in a time.
fn count(beats: &AtomicUsize, seconds: u64) -> usize {
    let before = beats.load(Ordering::SeqCst);
    thread::sleep(Duration::from_secs(seconds));
    beats.load(Ordering::SeqCst) - before
}

#[test]
fn a_step_that_does_not_end_is_told_and_the_watchdog_is_left_alone() {
    let work = scratch();
    let (socket, models) = (work.path().join("notify"), work.path().join("models.yaml"));
    let beats = supervisor(&socket);
    let shapes = crate::support::references().join("../../models/shapes");
    let text = |name: &str| format!("- {{name: {name}, bundle: '{}'}}\n", shapes.display());
    fs::write(&models, format!("models:\n{}{}", text("shapes"), text("other"))).expect("a file");
    let variables = [("NOTIFY_SOCKET", &*socket.display().to_string()), ("WATCHDOG_USEC", "300000")];
    let mut server = Server::start_with(&[&models.display().to_string(), "--stuck-after", "1"], &variables);
    server.get("/readyz").expect(200);
    assert!(count(&beats, 1) > 0);
    // One evaluation of so many pixels takes seconds.
    let body = json!({ "prompt": "a cat", "steps": 1, "width": 896, "height": 896 });
    let id = server.post("/v1/jobs", &body).expect(202).json()["id"].as_str().expect("a name").to_owned();
    let stuck =
        eventually(|| Some(server.get("/readyz/shapes")).filter(|answer| answer.text().contains("stuck")));
    let stuck = stuck.expect(503).json();
    assert_eq!((&stuck["status"], &stuck["ready"]), (&json!("stuck"), &json!(false)));
    assert!(
        stuck["error"].as_str().is_some_and(|error| error.starts_with("nothing has happened for ")),
        "{stuck}"
    );
    let whole = server.get("/readyz").expect(503).json();
    assert_eq!(
        (&whole["models"][0]["status"], &whole["models"][1]["status"]),
        (&json!("stuck"), &json!("unloaded"))
    );
    assert_eq!(server.get("/readyz/other").expect(503).json()["status"], "unloaded");
    server.get("/v2/health/ready").expect(503);
    server.get("/healthz").expect(200);
    thread::sleep(Duration::from_millis(200));
    let n_beats = count(&beats, 1);
    assert_eq!(server.get("/readyz/shapes").json()["status"], "stuck", "the step has ended too soon");
    assert_eq!(n_beats, 0);
    let log = eventually(|| fs::read_to_string(server.log()).ok().filter(|log| log.contains("is stuck")));
    assert!(log.contains("\"model\":\"shapes\""), "{log}");
    // A supervisor kills it and starts it again, and the job goes on.
    server.restart();
    let path = format!("/v1/jobs/{id}");
    let ended = eventually(|| Some(server.get(&path).json()).filter(|job| job["ended"].is_u64()));
    assert_eq!(ended["status"], "done", "{ended}");
    eventually(|| Some(()).filter(|()| server.get("/readyz").status == 200));
    assert!(count(&beats, 1) > 0);
}
