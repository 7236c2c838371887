//! Who is drawn when, and what becomes of those whom nobody waits for.

use base64::Engine;
use serde_json::json;

use super::{FleetWorker, Nats, create, ended, show, star};
use crate::server::{Server, eventually, png};

#[test]
fn a_client_does_not_wait_behind_all_jobs_of_another() {
    let nats = Nats::start();
    let folder = crate::fixtures::scratch();
    let file = folder.path().join("keys");
    let mut keys = Vec::new();
    let mut lines = String::new();
    for name in ["ann", "bob"] {
        let output =
            crate::cli::kiln(&["serve", "--new-key", name], folder.path()).output().expect("kiln runs");
        lines += &String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        keys.push(said.trim().rsplit(' ').next().expect("a key").to_owned());
    }
    std::fs::write(&file, lines).expect("a file");
    let server = nats.server(&["--keys", &file.display().to_string(), "--queue-share", "6"]);
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        let authorization = format!("Bearer {key}");
        server.request(method, path, &[("authorization", &authorization)], body.as_bytes())
    };
    let create = |key: &str, seed: u64| {
        ask(key, "POST", "/v1/jobs", &star(seed, 20).to_string()).expect(202).json()["id"]
            .as_str()
            .expect("a name")
            .to_owned()
    };
    let of_ann: Vec<String> = (0..6).map(|seed| create(&keys[0], seed)).collect();
    ask(&keys[0], "POST", "/v1/jobs", &star(9, 2).to_string()).expect(429);
    let of_bob = create(&keys[1], 7);
    let position = |key: &str, id: &str| {
        ask(key, "GET", &format!("/v1/jobs/{id}"), "").expect(200).json()["position"].clone()
    };
    assert_eq!([position(&keys[1], &of_bob), position(&keys[0], &of_ann[5])], [json!(1), json!(6)]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let end = |key: &str, id: &str| {
        eventually(|| {
            let job = ask(key, "GET", &format!("/v1/jobs/{id}"), "").expect(200).json();
            Some(()).filter(|()| job["status"] == "done")
        });
    };
    end(&keys[1], &of_bob);
    let last = ask(&keys[0], "GET", &format!("/v1/jobs/{}", of_ann[5]), "").expect(200).json();
    assert_ne!(last["status"], "done", "bob's only job comes before ann's sixth");
    of_ann.iter().for_each(|id| end(&keys[0], id));
}

#[test]
fn a_job_is_cancelled_wherever_it_is() {
    let nats = Nats::start();
    let (server, other) = (nats.server(&[]), nats.server(&[]));
    let waiting = create(&server, &star(1, 2));
    eventually(|| Some(()).filter(|()| show(&other, &waiting)["status"] == "queued"));
    let cancelled = other.post(&format!("/v1/jobs/{waiting}/cancel"), &json!({})).expect(202).json();
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    assert_eq!(nats.fleet_json("status")["queues"], json!([]));
    other.post(&format!("/v1/jobs/{waiting}/cancel"), &json!({})).expect(409);

    let worker = FleetWorker::start(&nats, "one", &[]);
    let drawn = create(&server, &star(2, 150));
    eventually(|| Some(()).filter(|()| show(&other, &drawn)["step"].as_u64() > Some(0)));
    other.post(&format!("/v1/jobs/{drawn}/cancel"), &json!({})).expect(202);
    let job = ended(&server, &drawn);
    assert_eq!((&job["status"], &job["is_cancelled"]), (&json!("cancelled"), &json!(true)));
    // The worker is free again.
    assert_eq!(ended(&server, &create(&server, &star(3, 2)))["status"], "done");
    eventually(|| Some(()).filter(|()| nats.fleet_json("status")["queues"] == json!([])));
    drop(worker);
}

#[test]
fn a_client_who_leaves_takes_the_job_along() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let mut stream = server.connect();
    let body = star(1, 150).to_string();
    let headers = [("content-type", "application/json")];
    crate::server::send(&mut stream, "POST", "/v1/images/generations", &headers, body.as_bytes());
    eventually(|| nats.fleet_json("jobs")["jobs"].as_array().filter(|jobs| jobs.len() == 1).map(|_| ()));
    drop(stream);
    eventually(|| Some(()).filter(|()| nats.fleet_json("status")["queues"] == json!([])));
    assert_eq!(nats.fleet_json("jobs")["jobs"], json!([]));
}

#[test]
fn a_full_queue_refuses_and_takes_again() {
    let nats = Nats::start();
    nats.fleet(&["init", "--queue", "2"]);
    let server = nats.server(&[]);
    let ids = [create(&server, &star(1, 2)), create(&server, &star(2, 2))];
    let refused = server.post("/v1/jobs", &star(3, 2)).expect(429);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(nats.fleet_json("jobs")["jobs"].as_array().map(Vec::len), Some(2));
    let _worker = FleetWorker::start(&nats, "one", &[]);
    ids.iter().for_each(|id| drop(ended(&server, id)));
    let taken = eventually(|| Some(server.post("/v1/jobs", &star(3, 2))).filter(|answer| answer.status == 202));
    assert_eq!(ended(&server, taken.json()["id"].as_str().expect("a name"))["status"], "done");
}

#[test]
fn models_are_ready_when_a_worker_has_them() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let is_ready = |status: u16| {
        eventually(|| Some(()).filter(|()| server.get("/readyz/shapes").status == status));
    };
    is_ready(503);
    let worker = FleetWorker::start(&nats, "one", &["--listen", "127.0.0.1:0"]);
    is_ready(200);
    let cards = nats.fleet_json("status")["workers"].clone();
    assert_eq!(cards[0]["name"], "one");
    assert_eq!(cards[0]["models"][0]["lane"]["class"], "cpu");
    // One that dies says nothing, and is missed all the same.
    drop(worker);
    is_ready(503);
}

#[test]
fn two_workers_of_one_name_are_refused() {
    let nats = Nats::start();
    let _worker = FleetWorker::start(&nats, "one", &[]);
    eventually(|| nats.fleet_json("status")["workers"].as_array().filter(|cards| cards.len() == 1).map(|_| ()));
    let words = ["worker", "--nats", &nats.url(), "--name", "one"];
    crate::cli::fail(
        &mut crate::cli::kiln(&words, crate::fixtures::scratch().path()),
        8,
        "worker one: another one",
    );
}

/// Jobs go on being known where the server that took them ends.
#[test]
fn servers_come_and_go() {
    let nats = Nats::start();
    let id = {
        let server: Server = nats.server(&[]);
        create(&server, &star(5, 3))
    };
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let server = nats.server(&[]);
    assert_eq!(ended(&server, &id)["status"], "done");
}

/// The metrics that a text names, without the endings that counters and histograms add.
fn metrics_of(text: &str) -> std::collections::BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named = text.split(|c: char| !is_name(c)).filter(|word| word.starts_with("kiln_"));
    let family = |name: &str| {
        let endings = ["_bucket", "_sum", "_count", "_total"];
        endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name).to_owned()
    };
    named.map(family).collect()
}

#[test]
fn what_dashboards_and_alerts_read_is_there() {
    let nats = Nats::start();
    let server = nats.server(&[]);
    let worker = FleetWorker::start(&nats, "one", &["--listen", "127.0.0.1:0"]);
    eventually(|| Some(()).filter(|()| server.get("/metrics").text().contains("kiln_fleet_workers 1")));
    // What has never happened is not told.
    ended(&server, &create(&server, &star(1, 2)));
    server.post("/v1/jobs", &json!({ "prompt": "a star", "model": "nothing" })).expect(404);
    let address = eventually(|| {
        let said = worker.said();
        let rest = said.split_once("its state is at http://")?.1;
        rest.split_once('/').map(|(address, _)| address.to_owned())
    });
    let of_worker = {
        let mut connection = std::net::TcpStream::connect(address).expect("a connection");
        crate::server::send(&mut connection, "GET", "/metrics", &[], b"");
        crate::server::answer(&mut std::io::BufReader::new(connection)).expect(200).text()
    };
    let metrics = server.get("/metrics").expect(200).text() + &of_worker;
    let known: std::collections::BTreeSet<String> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned))
        .collect();
    let folder = crate::support::references().join("../../crates/kiln-cli/packaging/fleet");
    for file in ["grafana.json", "alerts.yaml", "kubernetes/keda.yaml"] {
        let text = std::fs::read_to_string(folder.join(file)).expect(file);
        let read = metrics_of(&text);
        assert!(!read.is_empty(), "{file}");
        let missing: Vec<_> = read.iter().filter(|name| !known.contains(*name)).collect();
        assert!(missing.is_empty(), "{file}: {missing:?} of {known:?}");
    }
}

#[test]
fn pictures_of_refused_jobs_are_not_kept() {
    let nats = Nats::start();
    let server = nats.server(&["--queue", "1"]);
    create(&server, &star(1, 2));
    let png = base64::prelude::BASE64_STANDARD.encode(png(64, 64, |_, _| [7; 3]));
    let body = json!({ "prompt": "a star", "steps": 4, "init_image": png, "strength": 0.5 });
    server.post("/v1/jobs", &body).expect(429);
    assert_eq!(nats.monitored("OBJ_kiln-pictures")["messages"], 0);
}

#[test]
fn a_steady_stream_of_one_model_leaves_turns_to_another() {
    let (nats, folder) = (Nats::start(), crate::fixtures::scratch());
    let shapes = crate::support::references().join("../../models/shapes").display().to_string();
    let models = folder.path().join("models.yaml");
    let text = format!("models: [{{name: one, bundle: '{shapes}'}}, {{name: other, bundle: '{shapes}'}}]\n");
    std::fs::write(&models, text).expect("a file");
    let models = models.display().to_string();
    let server = nats.server(&[]);
    drop(server);
    let server = Server::start(&["--nats", &nats.url(), &models]);
    let of = |model: &str, seed: u64| {
        let mut body = star(seed, 4);
        body["model"] = model.into();
        create(&server, &body)
    };
    let many: Vec<String> = (0..40).map(|seed| of("one", seed)).collect();
    let few = of("other", 1);
    let _worker = FleetWorker::with(&nats, "worker", &[&models], &[]);
    ended(&server, &few);
    assert_ne!(show(&server, &many[39])["status"], "done", "one job of the other model comes before the last");
    many.iter().for_each(|id| drop(ended(&server, id)));
}
