//! OpenAI's edits and variations: forms, masks and pictures to start from.

use std::io::{BufReader, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::openai::{check_error, file};
use super::stream::{check_event, events};
use super::{Answer, Server, answer};

/// A PNG file of the pixels that `pixel` gives for column and row: three bytes each, or four with alpha.
pub(crate) fn png<const N: usize>(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; N]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(if N == 4 { png::ColorType::Rgba } else { png::ColorType::Rgb });
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels: Vec<u8> = places.flat_map(|(x, y)| pixel(x, y)).collect();
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&pixels).expect("pixels");
    writer.finish().expect("a file");
    file
}

const EDITS: &str = "/v1/images/edits";
const VARIATIONS: &str = "/v1/images/variations";

/// A part of a form: a text, or a file as async-openai sends it, without a type.
enum Part<'a> {
    Text(&'a str, &'a str),
    File(&'a str, &'a [u8]),
}

use Part::{File, Text};

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for part in parts {
        let (name, more, content) = match part {
            Text(name, text) => (name, "", text.as_bytes()),
            File(name, file) => (name, "; filename=\"a.bin\"", *file),
        };
        body.extend(
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n").as_bytes(),
        );
        body.extend(content);
        body.extend(b"\r\n");
    }
    [&body[..], b"--xyz--\r\n"].concat()
}

const KIND: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=xyz");

fn send(server: &Server, path: &str, parts: &[Part<'_>]) -> Answer {
    server.request("POST", path, &[KIND], &form(parts))
}

/// An edit of the picture, with more parts.
fn edit<'a>(image: &'a [u8], more: impl IntoIterator<Item = Part<'a>>) -> Vec<Part<'a>> {
    let begin = [Text("prompt", "a circle"), Text("steps", "4"), Text("seed", "1"), File("image", image)];
    begin.into_iter().chain(more).collect()
}

fn picture() -> Vec<u8> {
    png(64, 64, |x, y| [x as u8 * 4, y as u8 * 4, 200])
}

fn edited(server: &Server, parts: &[Part<'_>]) -> Vec<u8> {
    file(&send(server, EDITS, parts).expect(200).json(), 0)
}

#[test]
fn masks_are_transparent_or_white_where_is_painted() {
    let server = Server::start(&[]);
    let image = picture();
    let with_mask = |mask: &[u8]| edited(&server, &edit(&image, [File("mask", mask)]));
    let left = |x: u32| x < 32;
    let transparent = with_mask(&png(64, 64, |x, _| [0, 0, 0, if left(x) { 0 } else { 255 }]));
    let white = with_mask(&png(64, 64, |x, _| [if left(x) { 255 } else { 0 }; 3]));
    // A white mask whose alpha says nothing.
    let opaque = with_mask(&png(64, 64, |x, _| {
        let value = if left(x) { 255 } else { 0 };
        [value, value, value, 255]
    }));
    let other_half = with_mask(&png(64, 64, |x, _| [if left(x) { 0 } else { 255 }; 3]));
    let everywhere = with_mask(&png(64, 64, |_, _| [9, 9, 9, 0]));
    assert!(transparent == white && white == opaque);
    assert!(white != other_half && white != everywhere && other_half != everywhere);
    let own = png(64, 64, |x, y| [x as u8 * 4, y as u8 * 4, 200, if left(x) { 0 } else { 255 }]);
    assert!(edited(&server, &edit(&own, [])) == white, "a picture's own transparency is its mask");
    assert!(edited(&server, &edit(&image, [])) != white);
}

#[test]
fn forms_come_in_every_shape_that_clients_send() {
    let server = Server::start(&[]);
    let image = picture();
    let plain = edited(&server, &edit(&image, []));
    let texts = || [Text("prompt", "a circle"), Text("steps", "4")];
    let [a, b] = texts();
    assert!(edited(&server, &[a, File("image[]", &image), b, Text("seed", "1")]) == plain);
    let [a, b] = texts();
    let full =
        [File("image", &image), a, b, Text("n", "1"), Text("seed", "1"), Text("response_format", "b64_json")];
    let drawn = send(&server, EDITS, &full).expect(200).json();
    assert!(file(&drawn, 0) == plain && drawn["data"][0]["url"].is_null());
    // Node sends streams without a length.
    let body = form(&edit(&image, []));
    let head =
        format!("POST {EDITS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}: {}\r\n", KIND.0, KIND.1);
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for part in body.chunks(1000) {
        chunked.extend(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend([part, b"\r\n"].concat());
    }
    chunked.extend(b"0\r\n\r\n");
    let mut stream = server.connect();
    stream.write_all(&chunked).expect("the server reads");
    assert!(file(&answer(&mut BufReader::new(stream)).expect(200).json(), 0) == plain);
    let text = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(&image));
    let body = json!({ "prompt": "a circle", "steps": 4, "seed": 1, "image": text });
    assert!(file(&server.post(EDITS, &body).expect(200).json(), 0) == plain);
}

#[test]
fn an_edit_has_the_size_of_its_picture_or_the_one_asked_for() {
    let server = Server::start(&[]);
    // Noise, so that the file is larger than what frameworks read by default.
    let noise = |x: u32, y: u32| {
        (x.wrapping_mul(2654435761) ^ y.wrapping_mul(40503)).wrapping_mul(2246822519).to_be_bytes()
    };
    let large = png(1200, 800, |x, y| {
        let [r, g, b, _] = noise(x, y);
        [r, g, b]
    });
    assert!(large.len() > 2 << 20);
    let answer = send(&server, EDITS, &edit(&large, [Text("size", "96x64")])).expect(200).json();
    assert_eq!(answer["size"], "96x64");
    let own = png(80, 48, |x, y| [x as u8, y as u8, 7]);
    assert_eq!(send(&server, EDITS, &edit(&own, [Text("size", "auto")])).expect(200).json()["size"], "80x48");
    assert_eq!(send(&server, EDITS, &edit(&own, [])).expect(200).json()["size"], "80x48");
}

#[test]
fn edits_stream() {
    let server = Server::start(&[]);
    let image = picture();
    let plain = edited(&server, &edit(&image, []));
    let answer = send(&server, EDITS, &edit(&image, [Text("stream", "true"), Text("partial_images", "1")]));
    let events = events(&String::from_utf8(answer.body).expect("UTF-8"));
    let (last, partial) = events.split_last().expect("events");
    partial.iter().for_each(|event| drop(check_event(event, "image_edit.partial_image", "png")));
    assert!(check_event(last, "image_edit.completed", "png") == plain);
}

#[test]
fn variations_start_from_a_picture_and_no_prompt() {
    let server = Server::start(&[]);
    let image = picture();
    let asked =
        [Text("n", "2"), Text("size", "64x64"), Text("steps", "4"), Text("seed", "1"), File("image", &image)];
    let answer = send(&server, VARIATIONS, &asked).expect(200).json();
    assert!(file(&answer, 0) != file(&answer, 1));
    let edit = [Text("prompt", ""), Text("steps", "4"), Text("seed", "1"), File("image", &image)];
    assert!(edited(&server, &edit) == file(&answer, 0));
    let answer = send(&server, VARIATIONS, &[Text("prompt", "x"), File("image", &image)]);
    check_error(&answer, 400, Some("prompt"), "is not a parameter");
}

#[test]
fn wrong_forms_are_named() {
    let server = Server::start(&[]);
    let image = picture();
    let refused = |more: Vec<Part<'_>>, param: &str, words: &str| {
        let answer = send(&server, EDITS, &edit(&image, more));
        check_error(&answer, 400, Some(param), words);
    };
    refused(vec![File("image", &image)], "image", "2 pictures");
    refused(vec![File("mask", &image), File("mask", &image)], "mask", "2 pictures");
    refused(vec![File("mask", b"GIF8 and more")], "mask", "");
    refused(vec![File("mask", b"")], "mask", "");
    refused(vec![Text("n", "two")], "n", "is not a whole number");
    refused(vec![Text("stream", "yes")], "stream", "is not true or false");
    refused(vec![Text("strength", "1.5")], "strength", "");
    refused(vec![Text("strength", "NaN")], "strength", "");
    refused(vec![Text("loras[none]", "1")], "loras", "none");
    refused(vec![Text("input_fidelity", "high")], "input_fidelity", "is not one of low");
    refused(vec![Text("tiling", "true")], "tiling", "is not a parameter");
    refused(vec![File("user", b"\xff\xfe")], "user", "is not UTF-8");
    check_error(&send(&server, EDITS, &[Text("prompt", "x")]), 400, Some("image"), "is missing");
    check_error(&send(&server, EDITS, &[File("image", &image)]), 400, Some("prompt"), "is missing");
    check_error(&send(&server, EDITS, &edit(b"no picture", [])), 400, Some("image"), "");
    check_error(&send(&server, VARIATIONS, &[]), 400, Some("image"), "is missing");
    let many: Vec<_> = (0..65).map(|_| Text("user", "x")).chain([File("image", &image)]).collect();
    let distinct: Vec<String> = (0..70).map(|i| format!("a{i}")).collect();
    let distinct: Vec<_> = distinct.iter().map(|name| Text(name, "x")).collect();
    check_error(&send(&server, EDITS, &distinct), 400, None, "more than 64 parts");
    check_error(&send(&server, EDITS, &many), 400, None, "more than 64 parts");
    let cut = form(&edit(&image, []));
    let cut = server.request("POST", EDITS, &[KIND], &cut[..cut.len() / 2]);
    check_error(&cut, 400, None, "");
    let without_boundary = server.request("POST", EDITS, &[("Content-Type", "multipart/form-data")], b"--x--");
    check_error(&without_boundary, 400, None, "");
    // A picture of more pixels than may be drawn is refused before it waits.
    let wide = png(4096, 8, |_, _| [0; 3]);
    check_error(&send(&server, EDITS, &edit(&wide, [])), 400, Some("size"), "4096");
    let _: Value = send(&server, EDITS, &edit(&image, [])).expect(200).json();
}
