//! The Open Inference Protocol over HTTP: what Triton's and KServe's clients send and read.

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use std::io::{BufReader, Write};

use super::{Answer, Server, answer, eventually, send};

const INFER: &str = "/v2/models/shapes/infer";
const LENGTH: &str = "Inference-Header-Content-Length";

/// One picture in two steps.
fn asked(outputs: Value) -> Value {
    json!({
        "id": "a",
        "inputs": [
            { "name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a red circle"] },
            { "name": "seed", "datatype": "INT64", "shape": [1], "data": [7] },
        ],
        "parameters": { "steps": 2, "guidance_scale": 3 },
        "outputs": outputs,
    })
}

/// That request with one more input.
fn with(input: Value) -> Value {
    let mut body = asked(json!([{ "name": "seed" }]));
    body["inputs"].as_array_mut().expect("a list").push(input);
    body
}

/// A text behind its length.
fn prefixed(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_le_bytes(), text].concat()
}

/// Sends JSON and what stands behind it, without a content type as Triton's client does.
fn sent(server: &Server, json: &Value, tensors: &[u8], headers: &[(&str, &str)]) -> Answer {
    let json = json.to_string();
    let length = json.len().to_string();
    let headers = [&[(LENGTH, length.as_str())], headers].concat();
    server.request("POST", INFER, &headers, &[json.as_bytes(), tensors].concat())
}

/// The JSON of an answer, and the tensors behind it.
fn split(answer: &Answer) -> (Value, &[u8]) {
    let length = answer.header(&LENGTH.to_lowercase()).expect("a length").parse().expect("a number");
    let (json, tensors) = answer.body.split_at(length);
    (serde_json::from_slice(json).expect("JSON"), tensors)
}

/// Fails unless the answer is an error as Triton's client reads it.
#[track_caller]
fn check_error(answer: &Answer, status: u16, words: &str) {
    let body = answer.json();
    let error = body["error"].as_str().unwrap_or_else(|| panic!("{body}"));
    assert_eq!(answer.status, status, "{body}");
    assert!(error.contains(words), "{words}: {error}");
    assert!(!error.contains('\n') && error.len() < 1000, "{error}");
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
}

#[test]
fn the_server_and_its_models_say_what_they_are() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/v2/health/live").expect(200).json(), json!({ "live": true }));
    assert_eq!(server.get("/v2/health/ready").expect(200).json(), json!({ "ready": true }));
    assert_eq!(server.get("/v2").expect(200).json()["name"], "kiln");
    for path in ["/v2/models/shapes", "/v2/models/shapes/versions/1"] {
        let metadata = server.get(path).expect(200).json();
        assert_eq!(metadata["inputs"][0], json!({ "name": "prompt", "datatype": "BYTES", "shape": [-1] }));
        assert_eq!(metadata["outputs"][0]["shape"], json!([-1, -1, -1, 3]));
        assert_eq!(server.get(&format!("{path}/ready")).expect(200).json()["ready"], true);
        assert_eq!(
            server.get(&format!("{path}/config")).expect(200).json()["input"][2]["data_type"],
            "TYPE_INT64"
        );
    }
    let index = server.request("POST", "/v2/repository/index", &[], b"").expect(200).json();
    assert_eq!(index, json!([{ "name": "shapes", "version": "1", "state": "READY", "reason": "" }]));
    check_error(&server.get("/v2/models/nobody/ready"), 404, "'nobody' is not served");
    check_error(&server.get("/v2/models/shapes/versions/2"), 404, "no version '2'");
    check_error(&server.get("/v2/models/a/b%20c"), 404, "nothing at this path");
    check_error(&server.get(INFER), 405, "method");
}

#[test]
fn pictures_are_the_same_in_json_and_in_binary_form() {
    let server = Server::start(&[]);
    let in_json = server.post(INFER, &asked(json!([]))).expect(200).json();
    assert_eq!((&in_json["id"], &in_json["model_name"]), (&json!("a"), &json!("shapes")));
    let [images, seed, info] = [0, 1, 2].map(|i| &in_json["outputs"][i]);
    assert_eq!((&images["datatype"], &images["shape"]), (&json!("UINT8"), &json!([1, 64, 64, 3])));
    assert_eq!((&seed["datatype"], &seed["data"]), (&json!("INT64"), &json!([7])));
    assert_eq!((&info["datatype"], &info["shape"]), (&json!("BYTES"), &json!([1])));
    let pixels: Vec<u8> = serde_json::from_value(images["data"].clone()).expect("bytes");
    assert_eq!(pixels.len(), 64 * 64 * 3);

    let mut body = asked(json!([
        { "name": "seed", "parameters": { "binary_data": true } },
        { "name": "images", "parameters": { "binary_data": true } },
        { "name": "info", "parameters": { "binary_data": false } },
    ]));
    body["inputs"][0] = json!({
        "name": "prompt", "datatype": "BYTES", "shape": [1, 1], "parameters": { "binary_data_size": 16 },
    });
    let binary = sent(&server, &body, &prefixed(b"a red circle"), &[]).expect(200);
    let (message, tensors) = split(&binary);
    assert_eq!(message["outputs"][1]["parameters"]["binary_data_size"], 64 * 64 * 3);
    assert_eq!(message["outputs"][2]["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(tensors, [&7i64.to_le_bytes()[..], &pixels].concat());

    let mut body = asked(json!([]));
    body["parameters"]["binary_data_output"] = json!(true);
    let all = sent(&server, &body, b"", &[]).expect(200);
    let (message, tensors) = split(&all);
    assert_eq!(message["outputs"].as_array().map(Vec::len), Some(3));
    assert_eq!(tensors[..pixels.len()], pixels);

    let count = server.get("/v2/models/shapes/stats").expect(200).json()["model_stats"][0].clone();
    assert_eq!(
        (&count["inference_count"], &count["inference_stats"]["success"]["count"]),
        (&json!(3), &json!(3))
    );
    assert!(count["inference_stats"]["compute_infer"]["ns"].as_u64() > Some(0), "{count}");
    assert_eq!(server.get("/v2/models/stats").expect(200).json()["model_stats"][0], count);
}

#[test]
fn bodies_may_be_compressed() {
    let server = Server::start(&[]);
    let mut body = asked(json!([{ "name": "seed" }]));
    body["inputs"][0] = json!({
        "name": "prompt", "datatype": "BYTES", "shape": [1], "parameters": { "binary_data_size": 16 },
    });
    let (json, tensor) = (body.to_string(), prefixed(b"a red circle"));
    // The header counts bytes before they are compressed.
    let length = json.len().to_string();
    let whole = [json.as_bytes(), &tensor].concat();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&whole).expect("memory");
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(&whole).expect("memory");
    let (gzip, deflate) = (gzip.finish().expect("memory"), deflate.finish().expect("memory"));
    for (encoding, packed) in [("gzip", gzip), ("deflate", deflate)] {
        let headers = [(LENGTH, length.as_str()), ("Content-Encoding", encoding)];
        let answer = server.request("POST", INFER, &headers, &packed).expect(200);
        assert_eq!(answer.json()["outputs"][0]["data"], json!([7]));
        // A client that shares its headers among requests claims this of what is not compressed.
        check_error(&server.request("POST", INFER, &headers, &whole), 400, "Content-Encoding");
    }
}

#[test]
fn headers_that_are_not_true_are_refused() {
    let server = Server::start(&[]);
    let body = asked(json!([{ "name": "seed" }])).to_string();
    let (shorter, longer) = ((body.len() - 1).to_string(), (body.len() + 1).to_string());
    for (length, words) in [
        (longer.as_str(), "claims"),
        (shorter.as_str(), "the first"),
        ("0", "the first 0 bytes"),
        ("18446744073709551616", "claims"),
        ("-1", "is not a number of bytes"),
        ("", "is not a number of bytes"),
        ("1e3", "is not a number of bytes"),
    ] {
        let answer = server.request("POST", INFER, &[(LENGTH, length)], body.as_bytes());
        check_error(&answer, 400, words);
    }
    check_error(&server.request("POST", INFER, &[(LENGTH, "0")], b""), 400, "the first 0 bytes");
    check_error(&sent(&server, &asked(json!([])), b"left over", &[]), 400, "9 bytes behind the last tensor");
}

#[test]
fn pictures_may_be_pixels_or_files() {
    let server = Server::start(&[]);
    let drawn = server.post(INFER, &asked(json!([{ "name": "images" }, { "name": "png" }]))).expect(200).json();
    let (pixels, file) = (drawn["outputs"][0]["data"].clone(), drawn["outputs"][1]["data"].clone());
    let again = |image: Value, mask: Option<Value>| {
        let mut body = asked(json!([{ "name": "images" }]));
        body["parameters"]["strength"] = json!(0.5);
        let inputs = body["inputs"].as_array_mut().expect("a list");
        inputs.push(image);
        inputs.extend(mask);
        server.post(INFER, &body).expect(200).json()["outputs"][0]["data"].clone()
    };
    let as_pixels = json!({ "name": "init_image", "datatype": "UINT8", "shape": [64, 64, 3], "data": pixels });
    let as_batch =
        json!({ "name": "init_image", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": pixels });
    let as_file = json!({ "name": "init_image", "datatype": "BYTES", "shape": [1], "data": file });
    let first = again(as_pixels.clone(), None);
    assert_ne!(first, pixels);
    assert_eq!(again(as_batch, None), first);
    assert_eq!(again(as_file, None), first);
    let grey = json!({ "name": "mask", "datatype": "UINT8", "shape": [64, 64], "data": vec![0; 64 * 64] });
    assert_ne!(again(as_pixels, Some(grey)), first);
}

#[test]
fn what_is_no_input_is_refused_by_name() {
    let server = Server::start(&[]);
    let huge = "x".repeat(10 << 20);
    let tensor = |name: &str, datatype: &str, shape: Value, data: Value| json!({ "name": name, "datatype": datatype, "shape": shape, "data": data });
    let picture = |shape: Value, data: Value| tensor("init_image", "UINT8", shape, data);
    let number = |name: &str, datatype: &str, data: Value| tensor(name, datatype, json!([1]), json!([data]));
    for (input, words) in [
        (number("prompt", "BYTES", json!("again")), "prompt: is given twice"),
        (number("steps", "INT32", json!(2)), "steps: is given twice"),
        (number("loras", "BYTES", json!("a")), "'loras' is no input"),
        (number("width", "FP32", json!(64)), "width: datatype 'FP32' is not"),
        (number("width", "INT32", json!(64.5)), "width: 64.5 is no INT32"),
        (number("width", "INT32", json!(-1)), "width: -1 is not from 1 to"),
        (number("width", "INT64", json!(4_294_967_296u64)), "width: 4294967296 is not from 1 to"),
        (number("height", "INT32", json!(0)), "height: 0 is not from 1 to"),
        (number("height", "INT32", json!("64")), "height: a text is no INT32"),
        (
            number("height", "UINT64", json!(18_446_744_073_709_551_615u64)),
            "height: 18446744073709551615 is not",
        ),
        (number("scheduler", "BYTES", json!("nobody")), "nobody"),
        (number("negative_prompt", "BYTES", json!("a\0b")), "negative_prompt: holds NUL"),
        (number("negative_prompt", "BYTES", json!(huge)), "negative_prompt: 10485760 bytes"),
        (number("strength", "FP32", json!(0.5)), "strength: has no init_image"),
        (picture(json!([64, 64]), json!([])), "init_image"),
        (picture(json!([2, 2, 3]), json!([1, 2])), "init_image: 2 elements"),
        (picture(json!([1, 1, 3]), json!([1, 2, 3, 4])), "init_image: more elements"),
        (picture(json!([-1, 2, 3]), json!([])), "init_image: shape [-1, 2, 3]"),
        (picture(json!([0, 2, 3]), json!([])), "init_image: shape [0, 2, 3]"),
        (picture(json!([4_294_967_296u64, 4_294_967_296u64, 3]), json!([])), "init_image: shape"),
        (picture(json!([9_223_372_036_854_775_807u64, 2, 3]), json!([])), "init_image: shape"),
        (picture(json!([18_446_744_073_709_551_615u64]), json!([])), "init_image: shape is not a list"),
        (picture(json!([1, 1, 1, 1, 1, 1, 1, 1, 3]), json!([])), "init_image: a shape of 9 sides"),
        (picture(json!(3), json!([])), "init_image: shape is not a list"),
        (picture(json!([1, 1, 3]), json!([1, 2, 256])), "init_image: 256 is no UINT8"),
        (
            json!({ "name": "init_image", "datatype": "BYTES", "shape": [1], "data": ["no picture"] }),
            "init_image",
        ),
        (json!({ "name": "width", "datatype": "INT32", "shape": [1] }), "width: has neither data"),
        (json!({ "name": "width", "datatype": 1, "shape": [1], "data": [1] }), "width: datatype is not a text"),
        (
            json!({ "name": "width", "datatype": "INT32", "shape": [1], "data": [1], "parameters": { "a": 1 } }),
            "'a'",
        ),
        (
            json!({ "name": "width", "datatype": "INT32", "shape": [1], "parameters": { "binary_data_size": 4 } }),
            "width: binary_data_size claims",
        ),
        (json!({ "name": "width", "nothing": 1 }), "unknown field `nothing`"),
    ] {
        check_error(&server.post(INFER, &with(input)), 400, words);
    }
    check_error(&server.request("POST", INFER, &[], b"{"), 400, "body");
    check_error(&server.request("POST", INFER, &[], b""), 400, "body");
    let scale = r#"{"inputs":[{"name":"prompt","datatype":"BYTES","shape":[1],"data":["a"]},
        {"name":"guidance_scale","datatype":"FP32","shape":[1],"data":[1e400]}]}"#;
    check_error(
        &server.request("POST", INFER, &[], scale.as_bytes()),
        400,
        "guidance_scale: number out of range",
    );
}

#[test]
fn parameters_and_outputs_are_checked_like_inputs() {
    let server = Server::start(&[]);
    for (name, value, words) in [
        ("steps", json!(0), "steps: 0 is not from 1 to 150"),
        ("steps", json!(true), "steps: is not an integer"),
        ("steps", json!([1]), "steps: is not a text, a number"),
        ("guidance_scale", json!("3"), "guidance_scale: is not a number"),
        ("guidance_scale", json!(1e300), "guidance_scale: 1e300 is too large"),
        ("scheduler", json!(1), "scheduler: is not a text"),
        ("priority", json!(1), "'priority' is no parameter"),
        ("timeout", json!(-1), "timeout: is not a number"),
        ("binary_data_output", json!(1), "binary_data_output"),
    ] {
        let mut body = asked(json!([]));
        body["parameters"][name] = value;
        check_error(&server.post(INFER, &body), 400, words);
    }
    check_error(&server.post(INFER, &asked(json!([{ "name": "depth" }]))), 400, "'depth' is no output");
    check_error(
        &server.post(INFER, &asked(json!([{ "name": "seed" }, { "name": "seed" }]))),
        400,
        "seed: is asked for twice",
    );
    let classes = json!([{ "name": "images", "parameters": { "classification": 1 } }]);
    check_error(&server.post(INFER, &asked(classes)), 400, "'classification'");
    let mut body = asked(json!([]));
    body["model_name"] = json!("other");
    check_error(&server.post(INFER, &body), 400, "model_name: 'other'");
    let mut body = asked(json!([]));
    body["parameters"] = json!({ "timeout": 1, "steps": 150 });
    check_error(&server.post(INFER, &body), 504, "timeout");
}

#[test]
fn binary_numbers_are_checked_like_others() {
    let server = Server::start(&[]);
    for (name, datatype, data, words) in [
        ("width", "INT32", (-64i32).to_le_bytes().to_vec(), "width: -64 is not from 1"),
        ("width", "INT32", vec![64, 0, 0], "width: 3 bytes"),
        ("width", "INT64", vec![64, 0, 0, 0], "width: 4 bytes"),
        (
            "guidance_scale",
            "FP64",
            f64::NAN.to_le_bytes().to_vec(),
            "guidance_scale: NaN is not a finite number",
        ),
        (
            "negative_prompt",
            "BYTES",
            vec![255, 255, 255, 255, 0],
            "negative_prompt: element 0 claims 4294967295 bytes",
        ),
        ("negative_prompt", "BYTES", vec![1, 0, 0, 0, 65, 0], "negative_prompt: 1 bytes behind"),
        ("negative_prompt", "BYTES", vec![1, 0, 0, 0, 255], "negative_prompt: is not UTF-8"),
        ("init_image", "BYTES", prefixed(b"\x89PNG\r\n\x1a\n"), "init_image"),
    ] {
        let mut body = with(json!({
            "name": name, "datatype": datatype, "shape": [1], "parameters": { "binary_data_size": data.len() },
        }));
        body["parameters"] = json!({});
        check_error(&sent(&server, &body, &data, &[]), 400, words);
    }
}

#[test]
fn seeds_spread_over_pictures() {
    let server = Server::start(&[]);
    let seeds = |prompts: usize, seeds: Option<Value>| {
        let mut body = asked(json!([{ "name": "seed" }]));
        let n = seeds.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
        body["inputs"] = json!([
            { "name": "prompt", "datatype": "BYTES", "shape": [prompts], "data": vec!["a"; prompts] },
            { "name": "seed", "datatype": "UINT64", "shape": [n], "data": seeds },
        ]);
        if n == 0 {
            body["inputs"].as_array_mut().expect("a list").pop();
        }
        server.post(INFER, &body)
    };
    let found = |answer: Answer| answer.expect(200).json()["outputs"][0]["data"].clone();
    assert_eq!(found(seeds(2, Some(json!([5])))), json!([5, 6]));
    assert_eq!(found(seeds(2, Some(json!([5, 3])))), json!([5, 3]));
    assert_eq!(found(seeds(1, Some(json!([5, 3])))), json!([5, 3]));
    assert_eq!(
        found(seeds(1, Some(json!([9_223_372_036_854_775_807u64])))),
        json!([9_223_372_036_854_775_807u64])
    );
    assert_ne!(found(seeds(1, None)), found(seeds(1, None)));
    check_error(&seeds(3, Some(json!([5, 3]))), 400, "seed: 2 seeds for 3 pictures");
    check_error(
        &seeds(1, Some(json!([9_223_372_036_854_775_808u64]))),
        400,
        "seed: 9223372036854775808 is not",
    );
    check_error(
        &seeds(2, Some(json!([9_223_372_036_854_775_807u64]))),
        400,
        "seed: 9223372036854775807 has no 2",
    );
    check_error(&seeds(11, Some(json!([1]))), 400, "prompt: 11 pictures, the limit is 10");
    check_error(&seeds(257, Some(json!([1]))), 400, "prompt: shape [257] has more than 256 elements");
}

#[test]
fn a_client_that_leaves_stops_its_drawing() {
    let server = Server::start(&[]);
    let mut body = asked(json!([]));
    body["parameters"]["steps"] = json!(150);
    body["inputs"][0]["shape"] = json!([10]);
    body["inputs"][0]["data"] = json!(vec!["a"; 10]);
    let drawing = || server.get("/readyz").json()["drawing"].as_u64();
    let mut stream = server.connect();
    send(&mut stream, "POST", INFER, &[], body.to_string().as_bytes());
    eventually(|| (drawing() == Some(1)).then_some(()));
    drop(stream);
    eventually(|| (drawing() == Some(0)).then_some(()));
    let count =
        server.get("/v2/models/shapes/stats").json()["model_stats"][0]["inference_stats"]["success"].clone();
    assert_eq!(count["count"], 0);
}

#[test]
fn any_bytes_are_refused_or_drawn() {
    let server = Server::start(&[]);
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let size = prop_oneof![0..64u64, any::<u64>()];
    let side = prop_oneof![0..4i64, any::<i64>()];
    let inputs = (
        proptest::sample::select(vec![
            "prompt",
            "seed",
            "steps",
            "width",
            "strength",
            "init_image",
            "mask",
            "scheduler",
        ]),
        proptest::sample::select(vec!["BYTES", "UINT8", "INT32", "INT64", "FP32", "FP64", "BOOL"]),
        proptest::collection::vec(side, 0..4),
        size,
        proptest::collection::vec(any::<u8>(), 0..64),
    );
    let run = runner.run(&inputs, |(name, datatype, shape, size, tensors)| {
        let body = json!({ "inputs": [
            { "name": name, "datatype": datatype, "shape": shape, "parameters": { "binary_data_size": size } },
        ] });
        let mut stream = server.connect();
        let json = body.to_string();
        let length = json.len().to_string();
        let whole = [json.as_bytes(), &tensors].concat();
        send(&mut stream, "POST", INFER, &[(LENGTH, &length)], &whole);
        let answer = answer(&mut BufReader::new(stream));
        let is_told = answer.json()["error"].as_str().is_some_and(|error| !error.contains('\n'));
        prop_assert!(answer.status == 200 || (answer.status == 400 && is_told), "{}", answer.text());
        Ok(())
    });
    run.unwrap_or_else(|e| panic!("{e}"));
}
