//! The Open Inference Protocol over gRPC, bytes and trailers as its clients see them.

use std::time::Duration;

use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use prost::bytes::Bytes;
use tokio::net::TcpStream;

use super::{Server, eventually};
use messages::{
    Empty, InferInputTensor, InferParameter, InferRequestedOutputTensor, InferTensorContents,
    ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelReadyResponse, ModelRequest,
    ModelStreamInferResponse, ParameterChoice, ServerLiveResponse, ServerMetadataResponse, ServerReadyResponse,
};

#[expect(dead_code, reason = "the tests do not look at every field")]
#[path = "../../crates/kiln-server/src/grpc/messages.rs"]
mod messages;

const SERVICE: &str = "/inference.GRPCInferenceService";

/// A call that is under way.
struct Call {
    send: SendStream<Bytes>,
    response: ResponseFuture,
}

/// What a call came to: its messages as bytes, and its code and words.
#[derive(Debug)]
struct Ended {
    messages: Vec<Bytes>,
    code: u16,
    words: String,
}

impl Ended {
    #[track_caller]
    fn only<T: Message + Default>(&self) -> T {
        assert_eq!((self.code, self.messages.len()), (0, 1), "{}", self.words);
        T::decode(self.messages[0].clone()).expect("a message")
    }

    #[track_caller]
    fn check(&self, code: u16, words: &str) {
        assert_eq!(self.code, code, "{}", self.words);
        assert!(self.words.contains(words), "{words}: {}", self.words);
        assert!(self.messages.is_empty());
    }
}

/// A message behind its length.
fn framed(message: &[u8]) -> Bytes {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat().into()
}

async fn begin(server: &Server, method: &str, headers: &[(&str, &str)]) -> Call {
    begin_at(server, &server.address.to_string(), method, headers).await
}

async fn begin_at(server: &Server, authority: &str, method: &str, headers: &[(&str, &str)]) -> Call {
    let stream = TcpStream::connect(server.address).await.expect("a connection");
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{authority}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut send = send.ready().await.expect("a connection");
    let (response, send) = send.send_request(request.body(()).expect("a request"), false).expect("a stream");
    Call { send, response }
}

async fn end(call: Call) -> Ended {
    drop(call.send);
    let response = call.response.await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let (parts, mut body) = response.into_parts();
    let mut data = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.expect("data");
        let _ = body.flow_control().release_capacity(chunk.len());
        data.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.expect("trailers").unwrap_or(parts.headers);
    let (code, words) = (text(&trailers, "grpc-status"), text(&trailers, "grpc-message"));
    Ended { messages: unframed(data.into()), code: code.parse().expect("a code"), words }
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| value.to_str().expect("ASCII").to_owned()).unwrap_or_default()
}

fn unframed(mut data: Bytes) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while !data.is_empty() {
        let prefix = data.split_to(5);
        assert_eq!(prefix[0], 0);
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        messages.push(data.split_to(length as usize));
    }
    messages
}

/// Sends bytes as the body of a call and reads all of the answer.
fn sent(server: &Server, method: &str, headers: &[(&str, &str)], body: Bytes) -> Ended {
    on_runtime(async {
        let mut call = begin(server, &format!("{SERVICE}/{method}"), headers).await;
        call.send.send_data(body, true).expect("a stream");
        end(call).await
    })
}

fn call(server: &Server, method: &str, message: &impl Message) -> Ended {
    sent(server, method, &[], framed(&message.encode_to_vec()))
}

#[test]
fn servers_are_called_by_their_own_names() {
    let server = Server::start(&[]);
    let called = |authority: &str, headers: &[(&str, &str)]| {
        on_runtime(async {
            let mut call = begin_at(&server, authority, &format!("{SERVICE}/ServerLive"), headers).await;
            call.send.send_data(framed(&[]), true).expect("a stream");
            end(call).await
        })
    };
    for own in ["localhost:1", "127.0.0.1", "[::1]:8001"] {
        assert!(called(own, &[]).only::<ServerLiveResponse>().live, "{own}");
    }
    let message = "host: 'evil.example:80' is no name of this server, unless --allow-host gives it";
    called("evil.example:80", &[]).check(7, message);
    called("localhost", &[("host", "evil.example")]).check(7, "--allow-host");
}

fn on_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limited = async { tokio::time::timeout(Duration::from_secs(120), future).await };
    runtime.block_on(limited).expect("an answer in time")
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: name.into(), datatype: datatype.into(), shape: shape.into(), ..Default::default() }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { choice: Some(choice) }
}

/// One picture in two steps; inputs raw, as Triton's client sends them.
fn asked() -> ModelInferRequest {
    let prompt = [&12u32.to_le_bytes()[..], b"a red circle"].concat();
    ModelInferRequest {
        model_name: "shapes".into(),
        id: "a".into(),
        inputs: vec![input("prompt", "BYTES", &[1]), input("seed", "INT64", &[1])],
        raw_input_contents: vec![prompt.into(), 7i64.to_le_bytes().to_vec().into()],
        parameters: [("steps".to_owned(), parameter(ParameterChoice::Int64(2)))].into(),
        ..Default::default()
    }
}

/// That request with one more input.
fn with(more: InferInputTensor, raw: &[u8]) -> ModelInferRequest {
    let mut request = asked();
    request.inputs.push(more);
    request.raw_input_contents.push(Bytes::copy_from_slice(raw));
    request
}

#[test]
fn the_server_and_its_models_say_what_they_are() {
    let server = Server::start(&[]);
    assert!(call(&server, "ServerLive", &Empty {}).only::<ServerLiveResponse>().live);
    assert!(call(&server, "ServerReady", &Empty {}).only::<ServerReadyResponse>().ready);
    assert_eq!(call(&server, "ServerMetadata", &Empty {}).only::<ServerMetadataResponse>().name, "kiln");
    let model = |name: &str, version: &str| ModelRequest { name: name.into(), version: version.into() };
    for (name, version, is_ready) in
        [("shapes", "", true), ("shapes", "1", true), ("shapes", "2", false), ("x", "", false)]
    {
        let answer = call(&server, "ModelReady", &model(name, version));
        assert_eq!(answer.only::<ModelReadyResponse>().ready, is_ready, "{name} {version}");
    }
    let metadata = call(&server, "ModelMetadata", &model("shapes", "")).only::<ModelMetadataResponse>();
    assert_eq!(
        (metadata.inputs[0].name.as_str(), &metadata.outputs[0].shape[..]),
        ("prompt", &[-1, -1, -1, 3][..])
    );
    call(&server, "ModelMetadata", &model("x", "")).check(5, "'x' is not served here");
    call(&server, "ModelConfig", &model("shapes", "")).check(12, "no such method");
    let elsewhere = on_runtime(async {
        let mut call = begin(&server, "/grpc.health.v1.Health/Check", &[]).await;
        call.send.send_data(framed(b""), true).expect("a stream");
        end(call).await
    });
    elsewhere.check(12, "nothing at this path");
}

#[test]
fn raw_and_typed_contents_draw_the_same() {
    let server = Server::start(&[]);
    let raw = call(&server, "ModelInfer", &asked()).only::<ModelInferResponse>();
    assert_eq!((raw.id.as_str(), raw.model_name.as_str()), ("a", "shapes"));
    let names: Vec<_> = raw.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["images", "seed", "info"]);
    assert_eq!(raw.outputs[0].shape, [1, 64, 64, 3]);
    assert_eq!(raw.raw_output_contents[0].len(), 64 * 64 * 3);
    assert_eq!(raw.raw_output_contents[1], &7i64.to_le_bytes()[..]);

    let mut typed = asked();
    typed.raw_input_contents.clear();
    let texts = vec![Bytes::from_static(b"a red circle")];
    typed.inputs[0].contents = Some(InferTensorContents { bytes_contents: texts, ..Default::default() });
    typed.inputs[1].contents = Some(InferTensorContents { int64_contents: vec![7], ..Default::default() });
    typed.outputs = vec![InferRequestedOutputTensor { name: "images".into(), ..Default::default() }];
    let typed = call(&server, "ModelInfer", &typed).only::<ModelInferResponse>();
    assert_eq!(typed.raw_output_contents, raw.raw_output_contents[..1]);

    let mut whole = asked();
    let pixels: Vec<u8> = raw.raw_output_contents[0].to_vec();
    whole.inputs.push(input("init_image", "UINT8", &[64, 64, 3]));
    whole.raw_input_contents.push(pixels.into());
    let drawn = call(&server, "ModelInfer", &whole).only::<ModelInferResponse>();
    assert_ne!(drawn.raw_output_contents[0], raw.raw_output_contents[0]);
}

#[test]
fn what_is_no_input_is_refused_by_name() {
    let server = Server::start(&[]);
    for (request, words) in [
        (with(input("width", "INT32", &[1]), &[1, 2, 3]), "width: 3 bytes"),
        (with(input("width", "INT32", &[1]), &(-8i32).to_le_bytes()), "width: -8 is not from 1"),
        (
            with(input("guidance_scale", "FP32", &[1]), &f32::INFINITY.to_le_bytes()),
            "guidance_scale: inf is not",
        ),
        (with(input("init_image", "UINT8", &[i64::MAX, i64::MAX, 3]), &[]), "init_image: shape"),
        (
            with(input("negative_prompt", "BYTES", &[1]), &[255, 255, 255, 255]),
            "negative_prompt: element 0 claims",
        ),
        (with(input("prompt", "BYTES", &[1]), &[]), "prompt: is given twice"),
        (with(input("nothing", "BYTES", &[1]), &[]), "'nothing' is no input"),
        (with(input("width", "BOOL", &[1]), &[]), "width: datatype 'BOOL'"),
    ] {
        call(&server, "ModelInfer", &request).check(3, words);
    }
    let mut request = asked();
    request.raw_input_contents.pop();
    call(&server, "ModelInfer", &request).check(3, "raw_input_contents: 1 for 2 inputs");
    let mut request = asked();
    request.raw_input_contents.clear();
    call(&server, "ModelInfer", &request).check(3, "prompt: 0 elements, its shape has 1");
    let mut request = asked();
    request.parameters.insert("steps".into(), InferParameter::default());
    call(&server, "ModelInfer", &request).check(3, "steps: has no value");
    call(&server, "ModelInfer", &ModelInferRequest { model_name: "x".into(), ..asked() }).check(5, "'x'");
}

#[test]
fn bodies_that_are_no_messages_are_refused() {
    let server = Server::start(&["--max-body", "1MiB"]);
    let message = asked().encode_to_vec();
    let twice = [framed(&message), framed(&message)].concat();
    let longer = [&[0, 0, 0, 1, 0], &b"abc"[..]].concat();
    for (body, code, words) in [
        (Bytes::new(), 3, "there is no message"),
        (Bytes::from_static(&[0, 0]), 3, "broke off"),
        (Bytes::from_static(&[7, 0, 0, 0, 0]), 3, "begins with 7"),
        (Bytes::from_static(&[1, 0, 0, 0, 0]), 3, "compressed"),
        (longer.into(), 3, "claims 256 bytes"),
        (Bytes::from_static(&[0, 255, 255, 255, 255]), 8, "the limit"),
        (framed(&[0xff; 20]), 3, "cannot be read"),
        (twice.into(), 3, "more than one"),
        (framed(&[0x2a, 0].repeat(100_000)), 3, "more than 4096 fields"),
        (framed(&vec![0; 2 << 20]), 8, "too large"),
    ] {
        sent(&server, "ModelInfer", &[], body).check(code, words);
    }
    sent(&server, "ModelInfer", &[("grpc-encoding", "br")], framed(&message)).check(12, "grpc-encoding");
    sent(&server, "ModelInfer", &[("grpc-timeout", "1d")], framed(&message)).check(3, "grpc-timeout");
}

#[test]
fn calls_need_a_key_unless_they_ask_for_health() {
    let folder = crate::fixtures::scratch();
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("me:{}\n", blake3::hash(b"secret").to_hex())).expect("a file");
    let server = Server::start(&["--keys", file.to_str().expect("UTF-8")]);
    assert!(call(&server, "ServerReady", &Empty {}).only::<ServerReadyResponse>().ready);
    call(&server, "ModelInfer", &asked()).check(16, "an API key is needed");
    let body = framed(&asked().encode_to_vec());
    sent(&server, "ModelInfer", &[("authorization", "Bearer wrong")], body.clone()).check(16, "an API key");
    sent(&server, "ModelStreamInfer", &[], body.clone()).check(16, "an API key");
    let answer = sent(&server, "ModelInfer", &[("authorization", "Bearer secret")], body);
    assert_eq!(answer.only::<ModelInferResponse>().outputs.len(), 3);
}

#[test]
fn a_stream_answers_in_order_and_outlives_refusals() {
    let server = Server::start(&[]);
    let request = |id: &str, steps: i64| {
        let mut request = ModelInferRequest { id: id.into(), ..asked() };
        request.parameters.insert("steps".into(), parameter(ParameterChoice::Int64(steps)));
        framed(&request.encode_to_vec())
    };
    let ended = on_runtime(async {
        let mut call = begin(&server, &format!("{SERVICE}/ModelStreamInfer"), &[]).await;
        for (id, steps) in [("a", 8), ("b", 0), ("c", 1)] {
            call.send.send_data(request(id, steps), id == "c").expect("a stream");
        }
        end(call).await
    });
    assert_eq!(ended.code, 0, "{}", ended.words);
    let answers = ended.messages.into_iter().map(ModelStreamInferResponse::decode);
    let answers: Vec<_> = answers.collect::<Result<_, _>>().expect("messages");
    let ids = answers.iter().map(|answer| answer.infer_response.as_ref().map(|response| response.id.as_str()));
    assert_eq!(ids.collect::<Vec<_>>(), [Some("a"), Some("b"), Some("c")]);
    assert_eq!((answers[0].error_message.as_str(), answers[2].error_message.as_str()), ("", ""));
    assert!(answers[1].error_message.contains("steps: 0 is not from 1"), "{}", answers[1].error_message);
}

#[test]
fn a_call_that_is_dropped_or_late_stops_its_drawing() {
    let server = Server::start(&[]);
    let mut request = asked();
    request.parameters.insert("steps".into(), parameter(ParameterChoice::Int64(150)));
    request.inputs[0].shape = vec![10];
    request.raw_input_contents[0] = [1u8, 0, 0, 0, b'a'].repeat(10).into();
    let body = framed(&request.encode_to_vec());
    let drawing =
        |n: u64| eventually(|| (server.get("/readyz").json()["drawing"].as_u64() == Some(n)).then_some(()));
    on_runtime(async {
        let mut call = begin(&server, &format!("{SERVICE}/ModelInfer"), &[]).await;
        call.send.send_data(body.clone(), true).expect("a stream");
        let response = tokio::spawn(call.response);
        while server.get("/readyz").json()["drawing"].as_u64() != Some(1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        call.send.send_reset(Reason::CANCEL);
        assert!(response.await.expect("a task").is_err());
    });
    drawing(0);
    sent(&server, "ModelInfer", &[("grpc-timeout", "10m")], body).check(4, "timeout");
    drawing(0);
}
