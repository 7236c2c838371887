//! Bundles that workers fetch, and pictures that lie elsewhere.

use std::path::Path;

use serde_json::json;

use super::{FleetWorker, Nats, create, drawn_alone, ended, picture, show, star};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;
use crate::server::eventually;
use crate::support::references;

/// The small model's bundle, compiled into a folder.
fn compiled(folder: &Path) -> String {
    let shapes = references().join("../../models/shapes").display().to_string();
    succeed(&mut kiln(&["compile", &shapes], folder)).trim().to_owned()
}

#[test]
fn a_worker_without_models_fetches_what_jobs_wait_for() {
    let (nats, folder) = (Nats::start(), scratch());
    let server = nats.server(&[]);
    let cache = folder.path().join("cache").display().to_string();
    let fetched = folder.path().join("fetched").display().to_string();
    let _worker = FleetWorker::with(&nats, "bare", &["--bundles", &fetched], &[("KILN_CACHE_DIR", &cache)]);
    let id = create(&server, &star(1, 3));
    // Nobody has it yet.
    eventually(|| Some(()).filter(|()| nats.fleet(&["status"]).contains("no worker can draw them")));
    let bundle = compiled(folder.path());
    let digest = nats.fleet(&["push", &bundle, "--name", "shapes"]).trim().to_owned();
    assert_eq!(ended(&server, &id)["status"], "done");
    assert!(picture(&server, &id, 0) == drawn_alone(1, 3));
    assert_eq!(nats.fleet_json("bundles")["bundles"][0]["bundle"], json!(digest));
    let there = folder.path().join("fetched").join(&digest);
    assert!(there.join("bundle.yaml").is_file() && there.join("bundle.seal").is_file());

    let out = folder.path().join("pulled");
    nats.fleet(&["pull", "shapes", "--out", &out.display().to_string()]);
    succeed(&mut kiln(&["inspect", "--verify", &out.display().to_string()], folder.path()));
    let other = folder.path().join("other").display().to_string();
    fail(
        &mut nats.fleet_command(&["pull", "nothing", "--out", &other]),
        2,
        "bundle nothing: is not in the fleet's",
    );
    assert!(!Path::new(&other).exists());
}

#[test]
fn another_bundle_of_the_same_name_is_not_drawn_with() {
    let (nats, folder) = (Nats::start(), scratch());
    let shapes = references().join("../../models/shapes").display().to_string();
    let words = ["compile", &shapes, "--precision", "bf16"];
    let other = succeed(&mut kiln(&words, folder.path())).trim().to_owned();
    let models = folder.path().join("models.yaml");
    std::fs::write(&models, format!("models: [{{name: shapes, bundle: '{other}'}}]\n")).expect("a file");
    let server = nats.server(&[]);
    let worker = FleetWorker::with(&nats, "other", &[&models.display().to_string()], &[]);
    let id = create(&server, &star(1, 3));
    eventually(|| Some(()).filter(|()| worker.said().contains("the fleet does not have the bundle")));
    assert_eq!(show(&server, &id)["status"], "queued");
    nats.fleet(&["push", &compiled(folder.path()), "--name", "shapes"]);
    drop(worker);
    // One that has both draws each job with the bundle that it names.
    let _both = FleetWorker::with(&nats, "both", &[&models.display().to_string()], &[]);
    assert_eq!(ended(&server, &id)["status"], "done");
    assert!(picture(&server, &id, 0) == drawn_alone(1, 3));
    assert!(show(&server, &id)["infotexts"][0].as_str().expect("a text").contains("Model: shapes,"));
}

#[test]
fn pictures_lie_in_a_folder_that_all_share() {
    let (nats, folder) = (Nats::start(), scratch());
    let place = folder.path().join("results");
    nats.fleet(&["init", "--results", &place.display().to_string()]);
    let server = nats.server(&[]);
    let _worker = FleetWorker::start(&nats, "one", &[]);
    let id = create(&server, &star(1, 3));
    assert_eq!(ended(&server, &id)["status"], "done");
    assert!(picture(&server, &id, 0) == drawn_alone(1, 3));
    let files = || std::fs::read_dir(place.join("pictures/out").join(&id)).map_or(0, Iterator::count);
    assert_eq!(files(), 1);
    server.request("DELETE", &format!("/v1/jobs/{id}"), &[], b"").expect(204);
    assert_eq!(files(), 0);
}
