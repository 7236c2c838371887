//! Headers that pages of other origins may send and read. A `*` covers no `Authorization` (Fetch, 3.2.1), so each is named.

/// What clients in a browser send.
pub(super) const TAKEN: [&str; 31] = [
    "accept",
    "authorization",
    "cache-control",
    "content-type",
    "grpc-timeout",
    "idempotency-key",
    "inference-header-content-length",
    "last-event-id",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-compute-type",
    "x-request-id",
    "x-requested-with",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-custom-poll-interval",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-poll-helper",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
    "x-use-cache",
    "x-wait-for-model",
];

/// What they read of answers.
pub(super) const GIVEN: [&str; 4] =
    ["inference-header-content-length", "location", "retry-after", "x-request-id"];
