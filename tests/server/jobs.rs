//! kiln's own API: jobs that outlive connections and the process.

use std::io::BufReader;

use serde_json::{Value, json};

use super::{Answer, Server, chunk, create, ended, eventually, head, send, show};

#[track_caller]
fn picture(server: &Server, id: &str, index: usize) -> Vec<u8> {
    let answer = server.get(&format!("/v1/jobs/{id}/pictures/{index}")).expect(200);
    assert_eq!(answer.header("content-type"), Some("image/png"));
    answer.body
}

#[test]
fn a_job_is_taken_drawn_and_kept() {
    let mut server = Server::start(&[]);
    let taken = server.post("/v1/jobs", &json!({ "prompt": "a red circle", "seed": 7, "steps": 3, "n": 2 }));
    let taken = taken.expect(202);
    let id = taken.json()["id"].as_str().expect("a name").to_owned();
    assert_eq!(taken.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    let job = ended(&server, &id);
    assert_eq!((job["status"].as_str(), &job["seeds"]), (Some("done"), &json!([7, 8])), "{job}");
    let first = picture(&server, &id, 0);
    assert!(first != picture(&server, &id, 1));
    server.get(&format!("/v1/jobs/{id}/pictures/2")).expect(404);

    // A picture of a batch is what its seed draws alone.
    let alone = create(&server, &json!({ "prompt": "a red circle", "seed": 7, "steps": 3 }));
    ended(&server, &alone);
    let pixels = |png: Vec<u8>| {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        pixels
    };
    assert!(pixels(first.clone()) == pixels(picture(&server, &alone, 0)));

    server.restart();
    assert_eq!(ended(&server, &id)["status"], "done");
    assert!(picture(&server, &id, 0) == first);
    let listed = server.get("/v1/jobs").expect(200).json();
    let ids: Vec<&str> =
        listed["jobs"].as_array().expect("jobs").iter().filter_map(|job| job["id"].as_str()).collect();
    assert!(ids.contains(&&*id) && ids.contains(&&*alone), "{listed}");
}

#[test]
fn jobs_of_a_killed_server_are_drawn_by_the_next() {
    let mut server = Server::start(&["--batch", "2"]);
    let bodies = |seed: u64| json!({ "prompt": "a blue star", "seed": seed, "steps": 40 });
    let ids: Vec<String> = (0..5).map(|seed| create(&server, &bodies(seed))).collect();
    eventually(|| Some(()).filter(|()| show(&server, &ids[0])["status"] == "drawing"));
    server.restart();
    for id in &ids {
        assert_eq!(ended(&server, id)["status"], "done");
        assert!(!picture(&server, id, 0).is_empty());
    }
}

#[test]
fn ends_in_order_are_no_attempts_and_end_events_at_once() {
    let mut server = Server::start(&["--batch", "1"]);
    let ids: Vec<String> =
        (0..4).map(|seed| create(&server, &json!({ "prompt": "a star", "seed": seed, "steps": 30 }))).collect();
    for _ in 0..3 {
        let mut stream = server.connect();
        send(&mut stream, "GET", &format!("/v1/jobs/{}/events", ids[3]), &[], b"");
        let mut stream = BufReader::new(stream);
        head(&mut stream).expect(200);
        server.signal(libc::SIGTERM);
        let mut text = String::new();
        while let Some(chunk) = chunk(&mut stream) {
            text += &String::from_utf8_lossy(&chunk);
        }
        assert!(!text.contains("saving"), "{text}");
        server.wait();
        server.restart();
    }
    for id in &ids {
        assert_eq!(ended(&server, id)["status"], "done");
    }
    let listed = server.get(&format!("/v1/jobs?limit=2&before={}", ids[3])).expect(200).json();
    let listed: Vec<&str> =
        listed["jobs"].as_array().expect("jobs").iter().filter_map(|job| job["id"].as_str()).collect();
    assert_eq!(listed, [&ids[2], &ids[1]]);
    for wrong in ["limit=0", "limit=x", "before=0123456789abcdef0123456789abcdef", "page=2"] {
        server.get(&format!("/v1/jobs?{wrong}")).expect(400);
    }
}

#[test]
fn a_key_of_the_sender_makes_one_job() {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "a cat", "steps": 2 }).to_string();
    let send = |key: &str| {
        let answer = server.request("POST", "/v1/jobs", &[("idempotency-key", key)], body.as_bytes());
        answer.expect(202).json()["id"].as_str().expect("a name").to_owned()
    };
    let first = send("one");
    assert_eq!(send("one"), first);
    ended(&server, &first);
    assert_eq!(send("one"), first);
    assert_ne!(send("two"), first);
    let again = r#"{"steps": 2, "prompt": "a cat"}"#;
    let answer =
        server.request("POST", "/v1/jobs", &[("idempotency-key", "one")], again.as_bytes()).expect(202);
    assert_eq!(answer.json()["id"], first);
    let other = json!({ "prompt": "a dog", "steps": 2 }).to_string();
    let refused =
        server.request("POST", "/v1/jobs", &[("idempotency-key", "one")], other.as_bytes()).expect(422);
    assert!(refused.text().contains("Idempotency-Key"), "{}", refused.text());
    let long = "x".repeat(300);
    for wrong in [&long, "", "a\tb", "\u{e9}"] {
        server.request("POST", "/v1/jobs", &[("idempotency-key", wrong)], body.as_bytes()).expect(400);
    }
}

#[test]
fn a_job_can_be_followed_and_cancelled() {
    let server = Server::start(&[]);
    let id = create(&server, &json!({ "prompt": "a red circle", "steps": 12 }));
    let mut stream = server.connect();
    send(&mut stream, "GET", &format!("/v1/jobs/{id}/events"), &[], b"");
    let mut stream = BufReader::new(stream);
    assert_eq!(head(&mut stream).expect(200).header("content-type"), Some("text/event-stream"));
    let mut text = String::new();
    while let Some(chunk) = chunk(&mut stream) {
        text += &String::from_utf8_lossy(&chunk);
    }
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.last(), Some(&"done"), "{names:?}");
    assert!(text.ends_with("\n\n"));

    let id = create(&server, &json!({ "prompt": "a red circle", "steps": 150, "n": 8 }));
    eventually(|| Some(()).filter(|()| show(&server, &id)["step"].as_u64() > Some(0)));
    let waiting = create(&server, &json!({ "prompt": "a red circle", "steps": 150, "n": 8 }));
    assert_eq!(show(&server, &waiting)["position"], 0);
    for id in [&waiting, &id] {
        server.request("POST", &format!("/v1/jobs/{id}/cancel"), &[], b"").expect(202);
        assert_eq!(ended(&server, id)["status"], "cancelled");
        server.request("POST", &format!("/v1/jobs/{id}/cancel"), &[], b"").expect(409);
    }
    server.get("/v1/jobs/0123456789abcdef0123456789abcdef").expect(404);
    server.get("/v1/jobs/..%2F..%2Fetc%2Fpasswd").expect(404);
}

#[test]
fn pictures_are_changed_and_masked() {
    use base64::Engine;
    let server = Server::start(&[]);
    let id = create(&server, &json!({ "prompt": "a red circle", "seed": 1, "steps": 4 }));
    ended(&server, &id);
    let png = base64::prelude::BASE64_STANDARD.encode(picture(&server, &id, 0));
    let changed = json!({ "prompt": "a blue circle", "seed": 2, "steps": 6, "strength": 0.5,
                          "init_image": format!("data:image/png;base64,{png}"), "mask": png });
    let changed = create(&server, &changed);
    assert_eq!(ended(&server, &changed)["status"], "done");
    for (body, message) in [
        (json!({ "prompt": "x", "mask": png }), "mask"),
        (json!({ "prompt": "x", "init_image": "no base64!" }), "init_image: is not base64"),
        (json!({ "prompt": "x", "init_image": "aGVsbG8gd29ybGQ=" }), "init_image"),
    ] {
        let answer = server.post("/v1/jobs", &body).expect(400);
        assert!(answer.text().contains(message), "{}", answer.text());
    }
}

#[test]
fn pictures_that_a_job_starts_from_outlive_the_process_and_go_with_the_job() {
    use base64::Engine;
    let mut server = Server::start(&["--batch", "1"]);
    let source = create(&server, &json!({ "prompt": "a red circle", "seed": 1, "steps": 4 }));
    ended(&server, &source);
    let png = base64::prelude::BASE64_STANDARD.encode(picture(&server, &source, 0));
    let busy = create(&server, &json!({ "prompt": "a cat", "steps": 150 }));
    let changed = json!({ "prompt": "a blue circle", "seed": 2, "steps": 4, "strength": 0.5, "init_image": png,
                          "mask": png });
    let ids: Vec<String> = (0..2).map(|_| create(&server, &changed)).collect();
    let pictures = server.state.path().join("state/pictures");
    let of = |id: &str| {
        let names = std::fs::read_dir(&pictures).expect("a folder").flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with(id)).count()
    };
    assert_eq!(of(&ids[0]), 2);
    server.restart();
    server.request("POST", &format!("/v1/jobs/{busy}/cancel"), &[], b"");
    assert_eq!(ended(&server, &ids[0])["status"], "done");
    assert_eq!(of(&ids[0]), 3);
    let sent = server.get(&format!("/v1/jobs/{}/init_image", ids[0])).expect(200).body;
    let pixels = |png: &[u8]| kiln_runtime::image::RgbImage::from_bytes(png).expect("a picture");
    assert_eq!(pixels(&sent), pixels(&picture(&server, &source, 0)));
    server.request("DELETE", &format!("/v1/jobs/{}", ids[0]), &[], b"").expect(204);
    assert_eq!(of(&ids[0]), 0);
    ended(&server, &ids[1]);
    // A picture that is lost fails its job, and no other.
    let busy = create(&server, &json!({ "prompt": "a cat", "steps": 150 }));
    let without = create(&server, &changed);
    std::fs::remove_file(pictures.join(format!("{without}-mask"))).expect("a file");
    server.restart();
    let job = ended(&server, &without);
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("internal")), "{job}");
    assert_eq!(ended(&server, &busy)["status"], "done");
}

#[test]
fn what_cannot_be_drawn_is_refused_by_name() {
    let server = Server::start(&[]);
    let refuse = |body: Value, message: &str| {
        let answer: Answer = server.post("/v1/jobs", &body);
        assert!(answer.status == 400 || answer.status == 404, "{}", answer.text());
        let error = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains(&*server.state.path().to_string_lossy()), "{error}");
    };
    let with = |key: &str, value: Value| {
        let mut body = json!({ "prompt": "a cat" });
        body[key] = value;
        body
    };
    for value in [json!(0), json!(-1), json!(7), json!(2049), json!(4294967296u64), json!(1e300), json!("64")] {
        refuse(with("width", value.clone()), "");
        refuse(with("height", value), "");
    }
    for value in [json!(0), json!(151), json!(4294967296u64), json!(-1), json!(1.5)] {
        refuse(with("steps", value), "");
    }
    for value in [json!(0), json!(11), json!(4294967296u64)] {
        refuse(with("n", value), "");
    }
    refuse(with("guidance_scale", json!(1e300)), "guidance_scale");
    refuse(with("eta", json!(2)), "eta");
    refuse(with("scheduler", json!("nope")), "scheduler");
    refuse(with("model", json!("../../etc")), "model: '../../etc' is not served here");
    refuse(with("loras", json!({ "../x": 1.0 })), "lora: '../x'");
    refuse(with("unknown", json!(1)), "unknown: is not a parameter");
    refuse(json!({ "prompt": "a".repeat(20 << 10) }), "prompt: 20480 bytes");
    refuse(json!({ "prompt": "a\0b" }), "prompt: holds a NUL character");
    refuse(json!({}), "prompt");
    for body in [&b"{"[..], b"\xff\xfe", b"{\"prompt\": 1e400}", b"[1]", b"null", b""] {
        server.request("POST", "/v1/jobs", &[], body).expect(400);
    }
}
