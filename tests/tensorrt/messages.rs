//! Messages of TensorRT's as events.

use std::fmt;
use std::sync::{Arc, Mutex};

use ::tracing::field::{Field, Visit};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::subscriber::with_default;
use ::tracing::{Event, Level, Metadata, Subscriber};
use kiln_trt::Builder;

use super::library::{RELEASES, Stub};

/// Level, node and message of an event.
#[derive(Debug, PartialEq)]
struct Told {
    level: Level,
    node: Option<String>,
    message: String,
}

#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<Told>>>);

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "tensorrt"
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut told = Told { level: *event.metadata().level(), node: None, message: String::new() };
        event.record(&mut told);
        assert!(!told.message.contains("end it all"), "a subscriber that is broken");
        self.0.lock().unwrap().push(told);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        assert_eq!(field.name(), "node");
        self.node = Some(value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        assert_eq!(field.name(), "message");
        self.message = format!("{value:?}");
    }
}

/// Severity, message and node, as TensorRT-RTX 1.7.1 has them.
const MESSAGES: [(i32, Level, &str, Option<&str>); 9] = [
    (
        1,
        Level::ERROR,
        "ITensor::getDimensions: Error Code 4: API Usage Error (/mm/MatMul: last dimension of input0 = 5 and second to \
         last dimension of input1 = 4 but must match. In validate at /_src/optimizer/matrixMultiplyLayer.cpp:192)",
        Some("/mm/MatMul"),
    ),
    (
        1,
        Level::ERROR,
        "IBuilder::buildSerializedNetwork: Error Code 4: Internal Error (kOPT values for profile 0 violate shape \
         constraints: IShuffleLayer /blk/Reshape: reshaping failed for tensor: x reshape would change volume 10 to 21)",
        Some("/blk/Reshape"),
    ),
    (1, Level::ERROR, "ModelImporter.cpp:142: --- Begin node ---\nNode name: /mm/Frob", Some("/mm/Frob")),
    (1, Level::ERROR, "In function parseNode:\n[6] Invalid Node - /mid/Add\nITensor: Error", Some("/mid/Add")),
    (
        0,
        Level::ERROR,
        "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[/a/Mul.../b/Add]}.)",
        Some("{ForeignNode[/a/Mul.../b/Add]}"),
    ),
    (
        1,
        Level::ERROR,
        "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/x.cpp:250 \
         (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))",
        None,
    ),
    (
        2,
        Level::WARN,
        "IElementWiseLayer with inputs x and w: first input has type Half but second input has type Float.",
        None,
    ),
    (3, Level::DEBUG, "Searching for plugin: MyAttention, plugin_version: 1, plugin_namespace: ", None),
    (4, Level::TRACE, "Parsing node: /a/attn/MyAttention [MyAttention]", Some("/a/attn/MyAttention")),
];

#[test]
fn messages_are_events_that_name_their_node() {
    for release in RELEASES {
        let stub = Stub::new(release);
        let _builder = Builder::new(&stub.library).unwrap();
        let events = Events::default();
        with_default(events.clone(), || {
            MESSAGES.iter().for_each(|(severity, _, text, _)| stub.say(*severity, text))
        });
        let expected = MESSAGES.map(|(_, level, text, node)| Told {
            level,
            node: node.map(str::to_owned),
            message: text.into(),
        });
        assert_eq!(*events.0.lock().unwrap(), expected);
    }
}

#[test]
fn a_subscriber_that_panics_does_not_reach_tensorrt() {
    let stub = Stub::new(RELEASES[0]);
    let builder = Builder::new(&stub.library).unwrap();
    with_default(Events::default(), || stub.say(1, "end it all"));
    stub.fail("createBuilderConfig");
    let error = builder.config().unwrap_err();
    assert!(error.to_string().contains("cannot make a configuration: end it all; IStub::"), "{error}");
}
