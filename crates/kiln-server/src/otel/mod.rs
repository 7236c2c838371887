//! Spans of requests and jobs for a collector that speaks OpenTelemetry's protocol over HTTP.

mod client;

use std::env;

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use client::Client;

/// Where the collector is, for all that is sent and for spans alone (OpenTelemetry's protocol exporter).
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: {reason}")]
pub struct ExporterError {
    /// The environment variable that says where to.
    pub variable: &'static str,
    /// What is wrong.
    pub reason: String,
}

/// Sends spans to a collector, in batches, from a thread of its own.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// What OpenTelemetry's environment variables ask for; none where they name no endpoint, or switch it off.
    ///
    /// # Errors
    ///
    /// For an endpoint that is none, or that needs TLS.
    pub fn from_environment() -> Result<Option<Exporter>, ExporterError> {
        let given = |name: &str| env::var(name).ok().filter(|value| !value.trim().is_empty());
        let is_off = given("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
        let mut named = ENDPOINTS.into_iter().filter_map(|name| Some((name, given(name)?)));
        let Some((variable, endpoint)) = named.next_back().filter(|_| !is_off) else { return Ok(None) };
        let refuse = |reason: String| ExporterError { variable, reason };
        if !endpoint.trim().to_ascii_lowercase().starts_with("http://") {
            return Err(refuse(format!("'{}' does not begin with http://", endpoint.escape_debug())));
        }
        let client = Client::new().map_err(|e| refuse(e.to_string()))?;
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build();
        let exporter = exporter.map_err(|e| refuse(e.to_string()))?;
        let resource = match given("OTEL_SERVICE_NAME") {
            Some(_) => Resource::builder(),
            None => Resource::builder().with_service_name("kiln"),
        };
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        Ok(Some(Exporter(provider.build())))
    }

    /// Takes up the spans of this crate, and nothing else.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.0.tracer("kiln-server");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        let is_own =
            |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with("kiln_server");
        layer.with_tracked_inactivity(false).with_filter(filter_fn(is_own))
    }

    /// Sends what is left.
    pub fn finish(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last spans are not sent: {error}");
        }
    }
}

/// Makes a span part of another one, which may end before.
pub(crate) fn put_within(span: &Span, parent: &Span) {
    // Fails where nobody takes up the span.
    let _ = span.set_parent(parent.context());
}

/// Makes a request's span part of the trace that its client names in `traceparent` (W3C Trace Context).
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Fails where nobody takes up the span.
    let _ = span.set_parent(parent);
}
