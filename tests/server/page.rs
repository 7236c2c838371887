//! The page at `/`, and what kiln's own API has for it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Answer, Server, eventually};
use crate::cli::kiln;
use crate::fixtures::scratch;

const FILES: [(&str, &str); 12] = [
    ("/docs", "text/html; charset=utf-8"),
    ("/page/docs.css", "text/css; charset=utf-8"),
    ("/page/docs.js", "text/javascript; charset=utf-8"),
    ("/", "text/html; charset=utf-8"),
    ("/page/page.css", "text/css; charset=utf-8"),
    ("/page/page.js", "text/javascript; charset=utf-8"),
    ("/page/api.js", "text/javascript; charset=utf-8"),
    ("/page/form.js", "text/javascript; charset=utf-8"),
    ("/page/gallery.js", "text/javascript; charset=utf-8"),
    ("/page/jobs.js", "text/javascript; charset=utf-8"),
    ("/page/start.js", "text/javascript; charset=utf-8"),
    ("/page/icon.svg", "image/svg+xml"),
];

#[test]
fn the_page_is_sealed_and_asks_nobody_else() {
    let server = Server::start(&[]);
    for (path, media_type) in FILES {
        let file = server.get(path).expect(200);
        assert_eq!(file.header("content-type"), Some(media_type), "{path}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(file.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(file.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(
            file.header("content-security-policy"),
            Some(
                "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                 connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
            ),
            "{path}"
        );
        let text = file.text().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!text.contains("://") && !text.contains("url(") && !text.contains("@import"), "{path}");
        for foreign in ["\"//", "'//", "`//", "\"http", "'http"] {
            assert!(!text.contains(foreign), "{path}: {foreign}");
        }
        assert!(text.is_ascii() || media_type.contains("utf-8"), "{path}");
        assert!(text.lines().count() < 500, "{path}");
    }
    for path in ["/page", "/page/", "/page/mod.rs", "/page/..%2Fmod.rs", "/index.html", "/page/page.js/"] {
        server.get(path).expect(404);
    }
    server.request("POST", "/", &[], b"x").expect(405);
}

#[test]
fn all_that_the_page_names_is_there() {
    let server = Server::start(&[]);
    let pages = ["/", "/docs"].map(|page| server.get(page).expect(200).text());
    for inline in ["<script>", "<style", " style=", " onclick", " onload", "javascript:"] {
        assert!(pages.iter().all(|html| !html.contains(inline)), "{inline}");
    }
    let ids = pages.each_ref().map(|html| {
        html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect::<Vec<&str>>()
    });
    let mut n_files = 0;
    for (path, _) in FILES {
        let text = server.get(path).expect(200).text();
        let links = text.split("\"/page/").skip(1).filter_map(|rest| rest.split('"').next());
        for named in links.chain(text.split("'./").skip(1).filter_map(|rest| rest.split('\'').next())) {
            server.get(&format!("/page/{named}")).expect(200);
            n_files += 1;
        }
        for id in text.split("$('").skip(1).filter_map(|rest| rest.split_once("')")).map(|(id, _)| id) {
            let own = &ids[usize::from(path.contains("docs"))];
            assert!(own.contains(&id), "{path}: {id}");
        }
    }
    assert!(n_files >= 8);
    for (ids, id) in ids.iter().flat_map(|ids| ids.iter().map(move |id| (ids, id))) {
        assert_eq!(ids.iter().filter(|other| other == &id).count(), 1, "{id}");
    }
}

#[test]
fn a_browser_keeps_the_page_while_it_is_the_same() {
    let server = Server::start(&[]);
    for (path, _) in FILES {
        let file = server.get(path).expect(200);
        let tag = file.header("etag").expect("a tag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 10, "{tag}");
        let ask = |known: &str| server.request("GET", path, &[("if-none-match", known)], b"");
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".into()] {
            let kept = ask(&known).expect(304);
            assert!(kept.body.is_empty() && kept.header("etag") == Some(&tag), "{path}: {known}");
        }
        ask("\"other\"").expect(200);
        let head = server.request("HEAD", path, &[], b"").expect(200);
        assert_eq!(head.header("content-length"), Some(file.body.len().to_string().as_str()));
    }
}

#[test]
fn a_browser_asks_for_the_key_by_itself_at_the_page_alone() {
    let work = scratch();
    let output = kiln(&["serve", "--new-key", "ann"], work.path()).output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let key = said.trim().rsplit(' ').next().expect("a key").to_owned();
    let keys = work.path().join("keys");
    std::fs::write(&keys, &output.stdout).expect("a file");
    let server = Server::start(&["--keys", &keys.display().to_string()]);
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("me:{key}")));
    for (path, _) in FILES {
        let refused = server.get(path).expect(401);
        assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"kiln\""), "{path}");
        assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
        server.request("GET", path, &[("authorization", &basic)], b"").expect(200);
        server.request("GET", path, &[("authorization", "Basic eDp5")], b"").expect(401);
    }
    for path in ["/v1/jobs", "/v1/options", "/page/other.js", "/metrics", "/v2", "/nothing"] {
        assert_eq!(server.get(path).expect(401).header("www-authenticate"), None, "{path}");
    }
}

fn create(server: &Server, body: &Value) -> String {
    server.post("/v1/jobs", body).expect(202).json()["id"].as_str().expect("a name").to_owned()
}

fn done(server: &Server, id: &str) -> Value {
    eventually(|| {
        let job = server.get(&format!("/v1/jobs/{id}")).expect(200).json();
        (job["status"] == "done").then_some(job)
    })
}

#[test]
fn options_say_what_can_be_asked_for() {
    let work = scratch();
    let shapes = crate::support::references().join("../../models/shapes");
    let models = json!({ "models": [
        { "name": "a", "title": "First", "bundle": shapes, "loras": { "ink": "no-such-file" }, "steps": 7,
          "scheduler": "euler-a", "limits": { "side": 256, "steps": 9 } },
        { "name": "b", "bundle": shapes },
    ] });
    let file = work.path().join("models.yaml");
    std::fs::write(&file, models.to_string()).expect("a file");
    let server = Server::start(&[&file.display().to_string()]);
    let text = server.get("/v1/options").expect(200).text();
    assert!(!text.contains("no-such-file") && !text.contains("models/shapes"), "{text}");
    let options: Value = serde_json::from_str(&text).expect("JSON");
    let [a, b] = [&options["models"][0], &options["models"][1]];
    assert_eq!((&a["name"], &a["title"], &a["loras"]), (&json!("a"), &json!("First"), &json!(["ink"])));
    assert_eq!((&a["steps"], &a["scheduler"]), (&json!(7), &json!("euler-a")));
    assert_eq!((&a["limits"]["side"], &a["limits"]["steps"]), (&json!(256), &json!(9)));
    assert_eq!((&b["title"], &b["steps"], &b["scheduler"]), (&json!("b"), &json!(50), &json!(null)));
    assert_eq!((&b["width"], &b["height"], &b["guidance_scale"]), (&json!(64), &json!(64), &json!(7.5)));
    assert!(options["max_body_bytes"].is_u64());
    let schedulers: Vec<&str> =
        b["schedulers"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert!(schedulers.contains(&"ddim") && schedulers.contains(&"dpm++2m:karras"));
    assert!(!schedulers.contains(&"ddim:karras") && !schedulers.iter().any(|name| name.starts_with("edm-")));
    for scheduler in schedulers {
        let body = json!({ "prompt": "x", "model": "b", "scheduler": scheduler, "steps": 4 });
        done(&server, &create(&server, &body));
    }
}

#[test]
fn a_jobs_settings_draw_it_again() {
    let server = Server::start(&[]);
    let file = |path: &str| -> Answer {
        let file = server.get(path).expect(200);
        assert_eq!(file.header("content-type"), Some("image/png"));
        file
    };
    let plain = create(&server, &json!({ "prompt": "a red circle", "seed": u64::MAX, "steps": 3, "n": 2 }));
    let job = done(&server, &plain);
    let expected = json!({ "model": "shapes", "prompt": "a red circle", "negative_prompt": "", "seed": u64::MAX,
        "n": 2, "steps": 3, "guidance_rescale": 0.0, "guidance_start": 0.0, "guidance_end": 1.0, "deep_every": 1, "eta": 0.0, "clip_skip": 0, "loras": {} });
    assert_eq!(job["settings"], expected);
    server.get(&format!("/v1/jobs/{plain}/init_image")).expect(404);
    server.get(&format!("/v1/jobs/{plain}/mask")).expect(404);

    let picture = BASE64_STANDARD.encode(file(&format!("/v1/jobs/{plain}/pictures/0")).body);
    let body = json!({ "prompt": "a blue circle", "negative_prompt": "red", "seed": 5, "steps": 6, "width": 72,
        "height": 64, "guidance_scale": 4.1, "guidance_rescale": 0.7, "guidance_start": 0.1, "guidance_end": 0.9, "scheduler": "ddim", "eta": 0.3,
        "clip_skip": 1, "strength": 0.5, "init_image": picture, "mask": picture });
    let first = create(&server, &body);
    let first = done(&server, &first);
    let mut settings = first["settings"].clone();
    for key in ["init_image", "mask"] {
        let path = settings[key].as_str().expect("a path").to_owned();
        settings[key] = BASE64_STANDARD.encode(file(&path).body).into();
    }
    for (key, value) in body.as_object().expect("fields") {
        if key != "init_image" && key != "mask" {
            assert_eq!(&settings[key], value, "{key}");
        }
    }
    let second = done(&server, &create(&server, &settings));
    let pixels = |job: &Value| file(job["pictures"][0].as_str().expect("a path")).body;
    assert!(pixels(&first) == pixels(&second));

    let listed = server.get("/v1/jobs").expect(200).json();
    assert!(listed["jobs"].as_array().expect("jobs").iter().all(|job| job["settings"]["steps"].is_u64()));
    let events = server.get(&format!("/v1/jobs/{plain}/events")).expect(200).text();
    assert!(events.contains("event: done") && !events.contains("\"settings\""), "{events}");
}

#[test]
fn a_deleted_job_is_gone_whatever_it_did() {
    let mut server = Server::start(&["--batch", "1"]);
    let delete =
        |server: &Server, id: &str| server.request("DELETE", &format!("/v1/jobs/{id}"), &[], b"").status;
    let ended = create(&server, &json!({ "prompt": "a red circle", "steps": 3, "n": 2 }));
    done(&server, &ended);
    let drawn =
        create(&server, &json!({ "prompt": "a red circle", "steps": 150, "width": 256, "height": 256 }));
    let waiting = create(&server, &json!({ "prompt": "a red circle", "steps": 150 }));
    let pictures = server.state.path().join("state/pictures");
    let n_files = || std::fs::read_dir(&pictures).expect("a folder").count();
    assert_eq!(n_files(), 2);
    for id in [&ended, &waiting, &drawn] {
        assert_eq!(delete(&server, id), 204);
        assert_eq!(delete(&server, id), 404);
        server.get(&format!("/v1/jobs/{id}")).expect(404);
        server.get(&format!("/v1/jobs/{id}/pictures/0")).expect(404);
    }
    assert_eq!(n_files(), 0);
    server.restart();
    assert_eq!(server.get("/v1/jobs").expect(200).json(), json!({ "jobs": [] }));
    assert_eq!(delete(&server, "x"), 404);
}

#[test]
fn pages_of_others_change_nothing() {
    let server = Server::start(&["--allow-origin", "https://friend.example"]);
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        server.request(method, path, headers, br#"{"prompt":"a cat","steps":2}"#).status
    };
    let foreign: [&[(&str, &str)]; 5] = [
        &[("origin", "https://elsewhere.example")],
        &[("origin", "null")],
        &[("origin", "http://kiln.localhost:8080")],
        &[("origin", "https://elsewhere.example"), ("sec-fetch-site", "cross-site")],
        &[("origin", "http://other.kiln.localhost"), ("sec-fetch-site", "same-site")],
    ];
    for headers in foreign {
        for (method, path) in [("POST", "/v1/jobs"), ("POST", "/v1/jobs/x/cancel"), ("DELETE", "/v1/jobs/x")] {
            assert_eq!(ask(method, path, headers), 403, "{method} {path} {headers:?}");
        }
        assert_eq!(ask("GET", "/v1/jobs", headers), 200);
    }
    assert_eq!(server.get("/v1/jobs").expect(200).json(), json!({ "jobs": [] }));
    let own: [&[(&str, &str)]; 4] = [
        &[],
        &[("origin", "http://kiln.localhost")],
        &[("origin", "https://kiln.localhost"), ("sec-fetch-site", "same-origin")],
        &[("origin", "https://friend.example"), ("sec-fetch-site", "cross-site")],
    ];
    for headers in own {
        assert_eq!(ask("POST", "/v1/jobs", headers), 202, "{headers:?}");
    }
}
