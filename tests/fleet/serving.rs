//! What clients see of a server that does not draw.

use std::io::BufReader;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::{FleetWorker, Nats, create, drawn_alone, ended, picture, show, star};
use crate::server::{Server, chunk, eventually, head, send};

#[test]
fn a_job_is_drawn_elsewhere_as_it_is_here() {
    let nats = Nats::start();
    let (server, other) = (nats.server(&[]), nats.server(&[]));
    let _workers = [FleetWorker::start(&nats, "one", &[]), FleetWorker::start(&nats, "two", &[])];
    let ids: Vec<String> = (0..4).map(|seed| create(&server, &star(seed, 3))).collect();
    for (seed, id) in (0..).zip(&ids) {
        let job = ended(&server, id);
        assert_eq!(job["status"], "done", "{job}");
        assert!(job["infotexts"][0].as_str().expect("a text").contains(&format!("Seed: {seed}")), "{job}");
        // Every server of the fleet knows every job.
        assert!(picture(&server, id, 0) == picture(&other, id, 0));
    }
    assert!(picture(&server, &ids[1], 0) == drawn_alone(1, 3));
    server.get(&format!("/v1/jobs/{}/pictures/1", ids[0])).expect(404);
    let listed = other.get("/v1/jobs?limit=2").expect(200).json();
    assert_eq!([&listed["jobs"][0]["id"], &listed["jobs"][1]["id"]], [&json!(ids[3]), &json!(ids[2])]);

    server.request("DELETE", &format!("/v1/jobs/{}", ids[3]), &[], b"").expect(204);
    eventually(|| {
        let listed = other.get("/v1/jobs").expect(200).json();
        Some(()).filter(|()| listed["jobs"].as_array().expect("jobs").len() == 3)
    });
    other.get(&format!("/v1/jobs/{}", ids[3])).expect(404);
}

#[test]
fn clients_who_wait_get_pictures_and_leave_nothing_behind() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let body = json!({ "prompt": "a blue star", "seed": 1, "n": 2, "steps": 3 });
    let drawn = server.post("/v1/images/generations", &body).expect(200).json();
    let file =
        BASE64_STANDARD.decode(drawn["data"][0]["b64_json"].as_str().expect("a picture")).expect("base64");
    let path = server.state.path().join("drawn.png");
    std::fs::write(&path, file).expect("a file");
    assert!(crate::cli::pixels(&path) == drawn_alone(1, 3));
    let body = json!({ "prompt": "a blue star", "seed": 1, "steps": 2, "batch_size": 2 });
    let drawn = server.post("/sdapi/v1/txt2img", &body).expect(200).json();
    assert_eq!(drawn["images"].as_array().map(Vec::len), Some(2));
    let refused = json!({ "prompt": "x", "model": "shapes", "steps": 100_000 });
    server.post("/v1/images/generations", &refused).expect(400);
    let listed = server.get("/v1/jobs").expect(200).json();
    assert_eq!(listed["jobs"], json!([]));
    eventually(|| Some(()).filter(|()| nats.fleet_json("jobs")["jobs"] == json!([])));
}

#[test]
fn events_tell_of_steps_and_previews_on_another_box() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    // The first one loads the model, and teaches what latents look like.
    ended(&server, &create(&server, &star(1, 2)));
    let id = create(&server, &star(2, 150));
    let mut stream = server.connect();
    send(&mut stream, "GET", &format!("/v1/jobs/{id}/events"), &[], b"");
    let mut stream = BufReader::new(stream);
    head(&mut stream).expect(200);
    let mut text = String::new();
    while let Some(chunk) = chunk(&mut stream) {
        text += &String::from_utf8_lossy(&chunk);
    }
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(events.last(), Some(&"done"), "{events:?}");
    assert!(events.contains(&"drawing") && events.contains(&"preview"), "{events:?}");
}

#[test]
fn a_key_of_the_sender_makes_one_job_whichever_server_takes_it() {
    let nats = Nats::start();
    let servers = [nats.server(&[]), nats.server(&[])];
    let body = star(1, 2).to_string();
    let send = |server: &Server, key: &str, body: &str| {
        server.request("POST", "/v1/jobs", &[("idempotency-key", key)], body.as_bytes())
    };
    let id = |server: &Server, key: &str| {
        send(server, key, &body).expect(202).json()["id"].as_str().expect("a name").to_owned()
    };
    let first = id(&servers[0], "one");
    assert_eq!(id(&servers[1], "one"), first);
    assert_ne!(id(&servers[1], "two"), first);
    send(&servers[1], "one", &star(2, 2).to_string()).expect(422);
    assert_eq!(nats.fleet_json("jobs")["jobs"].as_array().map(Vec::len), Some(2));
    let worker = FleetWorker::start(&nats, "one", &[]);
    assert_eq!(ended(&servers[0], &first)["status"], "done");
    assert_eq!(id(&servers[0], "one"), first);
    // Once it is forgotten, its key is free again.
    servers[0].request("DELETE", &format!("/v1/jobs/{first}"), &[], b"").expect(204);
    assert_eq!(id(&servers[1], "one"), first);
    assert_eq!(ended(&servers[1], &first)["status"], "done");
    drop(worker);
}

#[test]
fn pictures_to_start_from_travel_with_the_job() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let source = create(&server, &star(1, 3));
    ended(&server, &source);
    let file = server.get(&format!("/v1/jobs/{source}/pictures/0")).expect(200).body;
    let init = BASE64_STANDARD.encode(file);
    let body = json!({ "prompt": "a red circle", "seed": 4, "steps": 5, "init_image": init, "strength": 0.8 });
    let here = Server::start(&[]);
    let drawn: Vec<Vec<u8>> = [&server, &here]
        .into_iter()
        .map(|server| {
            let id = create(server, &body);
            assert_eq!(ended(server, &id)["status"], "done");
            server.get(&format!("/v1/jobs/{id}/init_image")).expect(200);
            picture(server, &id, 0)
        })
        .collect();
    assert!(drawn[0] == drawn[1]);
}

#[test]
fn positions_and_times_are_the_fleets() {
    let nats = Nats::start();
    let (server, other) = (nats.server(&[]), nats.server(&[]));
    let ids: Vec<String> = (0..3).map(|seed| create(&server, &star(seed, 2))).collect();
    eventually(|| Some(()).filter(|()| show(&other, &ids[2])["position"] == 2));
    assert_eq!(show(&server, &ids[0])["position"], 0);
    let metrics = other.get("/metrics").expect(200).text();
    assert!(metrics.contains("kiln_queue_depth 3"), "{metrics}");
    // What waits when a server starts is known to it.
    let third = nats.server(&[]);
    assert_eq!(show(&third, &ids[1])["position"], 1);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    ids.iter().for_each(|id| drop(ended(&third, id)));
}
