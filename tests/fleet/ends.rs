//! How jobs end where workers and the queue's server do not live for ever.

use serde_json::json;

use super::{FleetWorker, Nats, create, drawn_alone, ended, picture, show, star};
use crate::server::eventually;

#[test]
fn a_killed_workers_job_is_drawn_by_another() {
    let nats = Nats::start();
    nats.fleet(&["init", "--lease", "2"]);
    let server = nats.server(&[]);
    let mut first = FleetWorker::start(&nats, "first", &[]);
    let id = create(&server, &star(1, 150));
    eventually(|| Some(()).filter(|()| show(&server, &id)["step"].as_u64() > Some(2)));
    first.kill();
    let _second = FleetWorker::start(&nats, "second", &[]);
    assert_eq!(ended(&server, &id)["status"], "done");
    assert!(picture(&server, &id, 0) == drawn_alone(1, 150));
    let status = nats.fleet_json("status");
    assert_eq!((&status["queues"], &status["dead"]), (&json!([]), &json!(0)));
}

#[test]
fn a_job_that_ends_its_workers_is_given_up_and_can_be_tried_again() {
    let nats = Nats::start();
    nats.fleet(&["init", "--lease", "2", "--attempts", "2"]);
    let server = nats.server(&[]);
    let id = create(&server, &star(1, 150));
    for name in ["first", "second"] {
        let mut worker = FleetWorker::start(&nats, name, &[]);
        eventually(|| Some(()).filter(|()| nats.worker_of(&id).as_deref() == Some(name)));
        worker.kill();
    }
    let _third = FleetWorker::start(&nats, "third", &[]);
    let job = ended(&server, &id);
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("interrupted")));
    let why = job["error"]["message"].as_str().expect("a reason");
    assert!(why.contains("after 2 attempts: worker first did not finish, worker second"), "{why}");
    let dead = nats.fleet(&["dead"]);
    assert!(dead.contains(&id) && dead.contains("after 2 attempts"), "{dead}");
    // Others are drawn.
    assert_eq!(ended(&server, &create(&server, &star(2, 2)))["status"], "done");

    assert_eq!(nats.fleet(&["retry", "--all"]).trim(), id);
    crate::cli::fail(&mut nats.fleet_command(&["retry", &id]), 2, "is not one that was given up");
    let job = eventually(|| Some(show(&server, &id)).filter(|job| job["status"] == "done"));
    assert!(job["error"].is_null(), "{job}");
    assert_eq!(nats.fleet(&["dead"]), "");
}

#[test]
fn a_worker_that_is_told_to_end_gives_its_job_back() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let mut first = FleetWorker::start(&nats, "first", &["--drain", "0"]);
    let id = create(&server, &star(1, 150));
    eventually(|| Some(()).filter(|()| show(&server, &id)["step"].as_u64() > Some(2)));
    first.signal(libc::SIGTERM);
    assert_eq!(first.end(), Some(0), "{}", first.said());
    eventually(|| Some(()).filter(|()| show(&server, &id)["status"] == "queued"));
    let attempts = nats.fleet_json("jobs")["jobs"][0]["record"]["attempts"].clone();
    assert_eq!(attempts, 0, "an end in order is no attempt");

    let mut second = FleetWorker::start(&nats, "second", &[]);
    eventually(|| Some(()).filter(|()| nats.fleet_json("status")["workers"][0]["name"] == "second"));
    eventually(|| Some(()).filter(|()| show(&server, &id)["step"].as_u64() > Some(2)));
    // One that is drained finishes what it has.
    nats.fleet(&["drain", "second"]);
    assert_eq!(second.end(), Some(0), "{}", second.said());
    assert_eq!(ended(&server, &id)["status"], "done");
    let waits = create(&server, &star(2, 2));
    crate::cli::fail(
        &mut nats.fleet_command(&["drain", "second"]),
        2,
        "worker second: is not there; workers: none",
    );
    assert_eq!(show(&server, &waits)["status"], "queued");
}

#[test]
fn a_killed_queue_loses_nothing_that_was_taken() {
    let mut nats = Nats::start();
    nats.fleet(&["init", "--lease", "5"]);
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let ids: Vec<String> = (0..6).map(|seed| create(&server, &star(seed, 40))).collect();
    eventually(|| Some(()).filter(|()| show(&server, &ids[1])["step"].as_u64() > Some(0)));
    nats.kill();
    server.post("/v1/jobs", &star(9, 2)).expect(507);
    nats.restart();
    for (seed, id) in (0..).zip(&ids) {
        let job = eventually(|| {
            let answer = server.get(&format!("/v1/jobs/{id}"));
            (answer.status == 200).then(|| answer.json()).filter(|job| job["ended"].is_u64())
        });
        assert_eq!(job["status"], "done", "{job}");
        assert!(picture(&server, id, 0) == drawn_alone(seed, 40));
    }
    let taken = eventually(|| Some(server.post("/v1/jobs", &star(9, 2))).filter(|answer| answer.status == 202));
    assert_eq!(ended(&server, taken.json()["id"].as_str().expect("a name"))["status"], "done");
    eventually(|| Some(()).filter(|()| nats.fleet_json("status")["queues"] == json!([])));
}

#[test]
fn processes_end_soon_where_the_queue_is_away() {
    let mut nats = Nats::start();
    let mut server = nats.server(&["--drain", "1"]);
    let mut worker = FleetWorker::start(&nats, "one", &["--drain", "1"]);
    let id = create(&server, &star(1, 150));
    eventually(|| Some(()).filter(|()| show(&server, &id)["step"].as_u64() > Some(2)));
    nats.kill();
    let asked = std::time::Instant::now();
    worker.signal(libc::SIGTERM);
    server.signal(libc::SIGTERM);
    assert_eq!(worker.end(), Some(0), "{}", worker.said());
    assert_eq!(server.wait().code(), Some(0));
    assert!(asked.elapsed().as_secs() < 40, "{:?}", asked.elapsed());
    // What was not finished is drawn by the next.
    nats.restart();
    nats.fleet(&["init", "--lease", "2"]);
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "two", &[]);
    assert_eq!(ended(&server, &id)["status"], "done");
}

#[test]
fn a_job_of_a_newer_version_waits_and_others_go_on() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let worker = FleetWorker::start(&nats, "old", &[]);
    let status =
        eventually(|| Some(nats.fleet_json("status")).filter(|status| status["workers"][0].is_object()));
    let bundle = status["workers"][0]["models"][0]["lane"]["bundle"].as_str().expect("a digest").to_owned();
    let newer = include_str!("../../crates/kiln-fleet/tests/order-1.json")
        .replacen("\"protocol\": 1", "\"protocol\": 2", 1)
        .replace("\"spec\"", "\"brief\"");
    nats.publish(&format!("kiln.jobs.cpu.shapes.{}.newer", &bundle[..16]), &newer);
    eventually(|| {
        Some(()).filter(|()| worker.said().contains("the job is of protocol 2, this kiln reads up to 1"))
    });
    assert_eq!(ended(&server, &create(&server, &star(1, 2)))["status"], "done");
    let status = nats.fleet_json("status");
    assert_eq!((&status["queues"][0]["jobs"], &status["dead"]), (&json!(1), &json!(0)));
}
