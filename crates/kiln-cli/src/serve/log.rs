//! Log lines and spans of the server.

use std::io::stderr;

#[cfg(feature = "otel")]
use kiln_server::otel::Exporter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

use crate::args::LogFormat;
use crate::failure::Failure;
use crate::log;

/// Where spans go, if anywhere.
pub(crate) struct Spans {
    #[cfg(feature = "otel")]
    exporter: Option<Exporter>,
}

impl Spans {
    /// Sends what is left.
    pub(crate) fn finish(self) {
        #[cfg(feature = "otel")]
        self.exporter.into_iter().for_each(Exporter::finish);
    }
}

/// Writes lines to stderr and, with the feature `otel`, sends spans to a collector. Lines of `KILN_LOG` are shown instead,
/// without spans, where it is set.
pub(crate) fn start(format: LogFormat) -> Result<Spans, Failure> {
    #[cfg(feature = "otel")]
    let exporter = match log::is_on() {
        true => None,
        false => Exporter::from_environment().map_err(|e| Failure::usage(e.to_string()))?,
    };
    if !log::is_on() {
        let lines = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(false).with_target(false);
        let lines = match format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let shown = Targets::new().with_default(LevelFilter::INFO).with_target("async_nats", LevelFilter::WARN);
        let subscriber = registry().with(lines.with_filter(shown));
        #[cfg(feature = "otel")]
        let subscriber = subscriber.with(exporter.as_ref().map(Exporter::layer));
        subscriber.init();
    }
    Ok(Spans {
        #[cfg(feature = "otel")]
        exporter,
    })
}
