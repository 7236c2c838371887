//! Numbers for Prometheus.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use kiln_runtime::Timings;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfModel {
    model: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    model: String,
    phase: Span,
}

/// A part of a job's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Span {
    Queued,
    Begun,
    Stepped,
    Decoded,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnd {
    model: String,
    end: End,
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum End {
    Done,
    Failed,
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRefusal {
    reason: Refused,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Refused {
    Full,
    Model,
    Invalid,
    Ending,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    method: String,
    status: u16,
}

/// What is counted and measured.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    ends: Family<OfEnd, Counter>,
    refusals: Family<OfRefusal, Counter>,
    answers: Family<OfAnswer, Counter>,
    evaluations: Family<OfModel, Counter>,
    loads: Family<OfModel, Counter>,
    pictures_at_once: Histogram,
    times: Family<OfPhase, Histogram, fn() -> Histogram>,
    gauges: Gauges,
}

/// Numbers that are looked up when somebody asks.
#[derive(Default)]
struct Gauges {
    queued: Gauge,
    oldest: Gauge<f64, std::sync::atomic::AtomicU64>,
    drawing: Gauge,
    loaded_bytes: Gauge,
    resident_bytes: Gauge,
}

/// What the service looks like at a moment.
pub(crate) struct Moment {
    pub(crate) queued: usize,
    pub(crate) oldest: Duration,
    pub(crate) drawing: usize,
    pub(crate) loaded_bytes: u64,
}

fn seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let metrics = Metrics {
            registry: Mutex::default(),
            ends: Family::default(),
            refusals: Family::default(),
            answers: Family::default(),
            evaluations: Family::default(),
            loads: Family::default(),
            pictures_at_once: Histogram::new([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0]),
            times: Family::new_with_constructor(seconds),
            gauges: Gauges::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let kiln = registry.sub_registry_with_prefix("kiln");
        kiln.register("jobs", "Jobs that have ended, by how", self.ends.clone());
        kiln.register("refusals", "Jobs that were not taken, by why", self.refusals.clone());
        kiln.register("http_answers", "HTTP answers", self.answers.clone());
        kiln.register("evaluations", "Evaluations of the denoiser", self.evaluations.clone());
        kiln.register("loads", "Times that a model was loaded", self.loads.clone());
        kiln.register("batch", "Pictures that share an evaluation", self.pictures_at_once.clone());
        let help = "Time of jobs: waiting, until the first step, in steps, decoding";
        kiln.register_with_unit("job_phase", help, Unit::Seconds, self.times.clone());
        let Gauges { queued, oldest, drawing, loaded_bytes, resident_bytes } = &self.gauges;
        kiln.register("queue_depth", "Jobs that wait", queued.clone());
        kiln.register_with_unit(
            "queue_oldest",
            "How long the oldest of them waits",
            Unit::Seconds,
            oldest.clone(),
        );
        kiln.register("drawing", "Jobs that are drawn", drawing.clone());
        kiln.register_with_unit("loaded", "Weights that are loaded", Unit::Bytes, loaded_bytes.clone());
        kiln.register_with_unit("resident", "Memory of the process", Unit::Bytes, resident_bytes.clone());
    }

    pub(crate) fn ended(&self, model: &str, end: End) {
        self.ends.get_or_create(&OfEnd { model: model.into(), end }).inc();
    }

    pub(crate) fn refused(&self, reason: Refused) {
        self.refusals.get_or_create(&OfRefusal { reason }).inc();
    }

    pub(crate) fn answered(&self, method: &str, status: u16) {
        self.answers.get_or_create(&OfAnswer { method: method.into(), status }).inc();
    }

    pub(crate) fn loaded(&self, model: &str) {
        self.loads.get_or_create(&OfModel { model: model.into() }).inc();
    }

    pub(crate) fn evaluated(&self, model: &str, n_pictures: usize) {
        self.evaluations.get_or_create(&OfModel { model: model.into() }).inc();
        self.pictures_at_once.observe(n_pictures as f64);
    }

    pub(crate) fn waited(&self, model: &str, time: Duration) {
        self.time(model, Span::Queued, time);
    }

    pub(crate) fn took(&self, model: &str, timings: Timings) {
        self.time(model, Span::Begun, timings.start);
        self.time(model, Span::Stepped, timings.steps);
        self.time(model, Span::Decoded, timings.decode);
    }

    fn time(&self, model: &str, phase: Span, time: Duration) {
        self.times.get_or_create(&OfPhase { model: model.into(), phase }).observe(time.as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self, moment: &Moment) -> String {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.gauges.queued.set(count(moment.queued as u64));
        self.gauges.oldest.set(moment.oldest.as_secs_f64());
        self.gauges.drawing.set(count(moment.drawing as u64));
        self.gauges.loaded_bytes.set(count(moment.loaded_bytes));
        self.gauges.resident_bytes.set(count(kiln_runtime::process_memory::resident().unwrap_or(0)));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            let _ = writeln!(text, "# the numbers cannot be written");
        }
        text
    }
}
