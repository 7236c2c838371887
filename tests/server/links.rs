//! Links to pictures, and who may follow them.

use std::io::{BufReader, Write};

use serde_json::json;

use super::openai::{GENERATIONS, check_error, file, with};
use super::{Answer, Server, answer};
use crate::fixtures::scratch;

/// A request for a link, as bytes with these headers.
fn asked(version: &str, headers: &str, form: Option<&str>) -> Vec<u8> {
    let body = with(json!({ "response_format": form })).to_string();
    let n = body.len();
    let head =
        format!("POST {GENERATIONS} {version}\r\nConnection: close\r\nContent-Length: {n}\r\n{headers}\r\n");
    format!("{head}{body}").into_bytes()
}

fn sent(server: &Server, request: &[u8]) -> Answer {
    let mut stream = server.connect();
    stream.write_all(request).expect("the server reads");
    answer(&mut BufReader::new(stream))
}

#[test]
fn links_begin_as_the_client_knows_the_server() {
    let server = Server::start(&["--allow-host", "inner"]);
    for (headers, origin) in [
        ("Host: 127.0.0.1:99\r\n", "http://127.0.0.1:99/v1/files/"),
        ("Host: localhost:7860\r\n", "http://localhost:7860/v1/files/"),
        ("Host: [::1]:80\r\n", "http://[::1]:80/v1/files/"),
        ("Host: inner\r\nX-Forwarded-Proto: https\r\n", "https://inner/v1/files/"),
        (
            "Host: inner\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: a.example\r\n",
            "https://a.example/v1/files/",
        ),
        ("Host: inner\r\nX-Forwarded-Proto: javascript\r\nX-Forwarded-Host: a/b\r\n", "http://inner/v1/files/"),
    ] {
        let link =
            sent(&server, &asked("HTTP/1.1", headers, None)).expect(200).json()["data"][0]["url"].clone();
        let link = link.as_str().unwrap_or_default();
        assert!(link.starts_with(origin) && link.ends_with(".png"), "{headers}: {link}");
    }
}

#[test]
fn without_a_host_there_is_no_link() {
    let server = Server::start(&[]);
    let both = sent(&server, &asked("HTTP/1.0", "", None)).expect(200).json();
    assert!(both["data"][0]["url"].is_null() && !file(&both, 0).is_empty());
    let link = sent(&server, &asked("HTTP/1.0", "", Some("url")));
    check_error(&link, 400, Some("response_format"), "Host");
}

#[test]
fn a_link_is_its_own_key_and_opens_nothing_else() {
    let folder = scratch();
    let key = "kiln-0123";
    let line = format!("me:{}", blake3::hash(key.as_bytes()).to_hex());
    let keys = folder.path().join("keys");
    std::fs::write(&keys, line).expect("a file");
    let server = Server::start(&["--keys", keys.to_str().expect("UTF-8")]);
    let bearer = ("Authorization", "Bearer kiln-0123");
    let body = with(json!({})).to_string();
    for headers in [&[][..], &[("Authorization", "Bearer kiln-0124")], &[("Authorization", "Basic ")]] {
        // The upload is read to its end, so that the client sees the answer.
        let large = vec![b' '; 4 << 20];
        check_error(&server.request("POST", GENERATIONS, headers, &large), 401, None, "key");
        check_error(&server.request("GET", "/v1/models", headers, b""), 401, None, "key");
    }
    let answer = server.request("POST", GENERATIONS, &[bearer], body.as_bytes()).expect(200).json();
    let link = answer["data"][0]["url"].as_str().expect("a link").to_owned();
    let path = &link[link.find("/v1/").expect("a path")..];
    assert!(server.get(path).body == file(&answer, 0), "without the key");
    assert!(server.request("GET", path, &[bearer], b"").body == file(&answer, 0), "with the key");
    assert_eq!(server.request("HEAD", path, &[], b"").status, 200);
    let (folder, name) = path.rsplit_once('/').expect("a folder");
    let other = format!("{folder}/{}", name.replace(['0', '1', '2', '3', '4', '5', '6', '7'], "8"));
    check_error(&server.get(&other), 401, None, "key");
    check_error(&server.get("/v1/files/x.png"), 401, None, "key");
    check_error(&server.request("GET", &other, &[bearer], b""), 404, None, "no such file");
    check_error(&server.request("POST", path, &[bearer], b""), 405, None, "method");
}
