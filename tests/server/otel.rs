//! Spans as a collector of OpenTelemetry receives them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use prost::Message;
use serde_json::json;

use super::{Server, eventually};
use crate::cli::{fail, kiln};
use crate::fixtures::scratch;

const TERM: i32 = 15;

/// `ExportTraceServiceRequest`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

/// The value of an attribute, as text.
fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = attributes.iter().find(|found| found.key == key)?.value.clone()?;
    value.text.or(value.number.map(|number| number.to_string()))
}

/// A request's head, in lower case, and its body.
type Received = (String, Vec<u8>);

/// A collector: it answers 200 and keeps what it received.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let kept = received.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("a connection"));
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).expect("a head") > 0 {}
                let head = head.to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let mut body = vec![0; length.expect("a length").parse().expect("a length")];
                stream.read_exact(&mut body).expect("a body");
                kept.lock().expect("a lock").push((head, body));
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("an answer");
            }
        });
        Collector { address, received }
    }

    fn exports(&self) -> Vec<ResourceSpans> {
        let received = self.received.lock().expect("a lock");
        let exports = received.iter().map(|(_, body)| Export::decode(&body[..]).expect("an export"));
        exports.flat_map(|export| export.resources).collect()
    }

    fn spans(&self) -> Vec<Span> {
        self.exports().into_iter().flat_map(|resource| resource.scopes).flat_map(|scope| scope.spans).collect()
    }
}

#[test]
fn a_job_is_traced_from_its_request_to_its_pictures() {
    let collector = Collector::start();
    let endpoint = format!("http://{}", collector.address);
    let mut server = Server::start_with(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())]);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = json!({ "prompt": "a secret cat", "steps": 3 }).to_string();
    let sent = server.request("POST", "/v1/jobs?key=hidden", &[("traceparent", parent)], body.as_bytes());
    let id = sent.expect(202).json()["id"].as_str().expect("a name").to_owned();
    let path = format!("/v1/jobs/{id}");
    eventually(|| Some(()).filter(|()| server.get(&path).json()["status"] == "done"));
    server.signal(TERM);
    assert!(server.wait().success());

    let spans = collector.spans();
    let named = |name: &'static str| spans.iter().filter(move |span| span.name == name);
    let is_post = |span: &&Span| attribute(&span.attributes, "http.request.method").as_deref() == Some("POST");
    let request = named("request").find(is_post).expect("the request's span");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&request.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!((hex(&request.parent_span_id), request.kind), ("b7ad6b7169203331".into(), 2));
    assert_eq!(attribute(&request.attributes, "url.path").as_deref(), Some("/v1/jobs"));
    assert_eq!(attribute(&request.attributes, "http.response.status_code").as_deref(), Some("202"));
    let job = named("job").next().expect("the job's span");
    assert_eq!((&job.trace_id, &job.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(attribute(&job.attributes, "job"), Some(id));
    assert_eq!(attribute(&job.attributes, "outcome").as_deref(), Some("done"));
    assert_eq!(attribute(&job.attributes, "model").as_deref(), Some("shapes"));
    // The request's span ends with its answer, long before the job.
    assert!(request.start <= job.start && request.end < job.end);
    let mut last = job.start;
    for phase in ["queued", "loading", "drawing", "decoding", "saving"] {
        let spans: Vec<&Span> = named(phase).collect();
        let [span] = spans[..] else { panic!("{phase}: {} spans", spans.len()) };
        assert_eq!((&span.trace_id, &span.parent_span_id), (&job.trace_id, &job.span_id), "{phase}");
        assert!(last <= span.start && span.start <= span.end && span.end <= job.end, "{phase}");
        last = span.start;
    }
    // Requests without a parent are traces of their own.
    let root = named("request").find(|span| !is_post(span)).expect("a request");
    assert!(root.parent_span_id.is_empty() && root.trace_id != request.trace_id);

    let service = collector
        .exports()
        .iter()
        .find_map(|export| attribute(&export.resource.as_ref()?.attributes, "service.name"));
    assert_eq!(service.as_deref(), Some("kiln"));
    for (head, body) in collector.received.lock().expect("a lock").iter() {
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
        let text = String::from_utf8_lossy(body);
        assert!(!text.contains("secret cat") && !text.contains("hidden"), "{text}");
        assert!(!text.contains(&*server.state.path().to_string_lossy()), "{text}");
    }
}

#[test]
fn a_collector_that_is_away_holds_nothing_up() {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let endpoint = format!("http://{nobody}/x");
    let mut server = Server::start_with(&[], &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str())]);
    server.get("/healthz").expect(200);
    server.signal(TERM);
    assert!(server.wait().success());
    let work = scratch();
    let mut wrong = kiln(&["serve", "--state", "s"], work.path());
    wrong.env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.example");
    fail(&mut wrong, 2, "OTEL_EXPORTER_OTLP_ENDPOINT: 'https://collector.example' does not begin with http://");
}
