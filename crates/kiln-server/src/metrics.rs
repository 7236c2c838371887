//! Numbers for Prometheus.

use std::fmt::{self, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln_runtime::{Pool, Timings};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
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

/// Words as labels have them.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ }) => {
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                let word = match self {
                    $($name::$variant => $word),+
                };
                EncodeLabelValue::encode(&word, encoder)
            }
        }
    };
}

/// A part of a job's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Span {
    Queued,
    Begun,
    Stepped,
    Decoded,
}

words!(Span { Queued => "queued", Begun => "preparing", Stepped => "denoising", Decoded => "decoding" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEnd {
    model: String,
    end: End,
}

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Done,
    Failed,
    Cancelled,
}

words!(End { Done => "done", Failed => "failed", Cancelled => "cancelled" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRefusal {
    reason: Refused,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    Full,
    Model,
    Invalid,
    Ending,
}

words!(Refused { Full => "queue_full", Model => "unknown_model", Invalid => "invalid", Ending => "ending" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    method: String,
    status: u16,
}

/// Answers of the same kind, whose times are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    /// The path's template.
    route: String,
    /// Such as `2xx`.
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: &'static str,
}

/// What is counted and measured.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    ends: Family<OfEnd, Counter>,
    refusals: Family<OfRefusal, Counter>,
    answers: Family<OfAnswer, Counter>,
    answer_times: Family<OfRoute, Histogram, fn() -> Histogram>,
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
    memory: Family<OfPool, Gauge>,
    resident_bytes: Gauge,
    engine_loads: Counter,
    evictions: Counter,
    /// None of one box alone.
    workers: Family<OfFleet, Gauge>,
    dead: Family<OfFleet, Gauge>,
}

/// A fleet has no labels, and its numbers are there where it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFleet {}

/// What the service looks like at a moment.
pub(crate) struct Moment {
    pub(crate) queued: usize,
    pub(crate) oldest: Duration,
    pub(crate) drawing: usize,
    pub(crate) memory: Memory,
    pub(crate) fleet: Option<FleetMoment>,
}

/// What a fleet looks like at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetMoment {
    /// Workers that live.
    pub workers: u64,
    /// Jobs that were given up.
    pub dead: u64,
}

/// Memory that has bounds, in bytes, and what the weights' pool has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Weights that are loaded.
    pub weights: u64,
    /// Bodies that are being read, or wait to be.
    pub bodies: u64,
    /// Pictures behind links.
    pub links: u64,
    /// Times that an engine's weights were loaded.
    pub n_loads: u64,
    /// Times that they left to make room.
    pub n_evictions: u64,
}

impl Memory {
    /// What the weights' pool holds and has done; the rest is none.
    pub fn of(pool: &Pool) -> Memory {
        let [weights, n_loads, n_evictions] = [pool.loaded_bytes(), pool.n_loads(), pool.n_evictions()];
        Memory { weights, n_loads, n_evictions, ..Memory::default() }
    }
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
            answer_times: Family::new_with_constructor(seconds),
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
        let help = "Time until an answer begins, by path and class of status";
        kiln.register_with_unit("http_answer", help, Unit::Seconds, self.answer_times.clone());
        kiln.register("evaluations", "Evaluations of the denoiser", self.evaluations.clone());
        kiln.register("loads", "Times that a model was loaded", self.loads.clone());
        kiln.register("batch", "Pictures that share an evaluation", self.pictures_at_once.clone());
        let help = "Time of jobs: waiting, until the first step, in steps, decoding";
        kiln.register_with_unit("job_phase", help, Unit::Seconds, self.times.clone());
        let Gauges { queued, oldest, drawing, memory, resident_bytes, engine_loads, evictions, workers, dead } =
            &self.gauges;
        kiln.register("fleet_workers", "Workers that live", workers.clone());
        kiln.register("fleet_dead_jobs", "Jobs that were given up", dead.clone());
        kiln.register("queue_depth", "Jobs that wait", queued.clone());
        kiln.register_with_unit(
            "queue_oldest",
            "How long the oldest of them waits",
            Unit::Seconds,
            oldest.clone(),
        );
        kiln.register("drawing", "Jobs that are drawn", drawing.clone());
        kiln.register_with_unit(
            "memory",
            "Memory that has bounds, by what it holds",
            Unit::Bytes,
            memory.clone(),
        );
        kiln.register("engine_loads", "Times that an engine's weights were loaded", engine_loads.clone());
        let help = "Times that an engine's weights left to make room for others";
        kiln.register("engine_evictions", help, evictions.clone());
        kiln.register_with_unit("resident", "Memory of the process", Unit::Bytes, resident_bytes.clone());
    }

    pub(crate) fn ended(&self, model: &str, end: End) {
        self.ends.get_or_create(&OfEnd { model: model.into(), end }).inc();
    }

    pub(crate) fn refused(&self, reason: Refused) {
        self.refusals.get_or_create(&OfRefusal { reason }).inc();
    }

    /// Counts an answer on a path's template.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, time: Duration) {
        self.answers.get_or_create(&OfAnswer { method: method.into(), status }).inc();
        let of_route = OfRoute { route: route.into(), status: format!("{}xx", status / 100) };
        self.answer_times.get_or_create(&of_route).observe(time.as_secs_f64());
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
        let Memory { weights, bodies, links, n_loads, n_evictions } = moment.memory;
        for (pool, bytes) in [("weights", weights), ("bodies", bodies), ("links", links)] {
            self.gauges.memory.get_or_create(&OfPool { pool }).set(count(bytes));
        }
        if let Some(FleetMoment { workers, dead }) = moment.fleet {
            self.gauges.workers.get_or_create(&OfFleet {}).set(count(workers));
            self.gauges.dead.get_or_create(&OfFleet {}).set(count(dead));
        }
        self.gauges.engine_loads.inner().store(n_loads, Ordering::Relaxed);
        self.gauges.evictions.inner().store(n_evictions, Ordering::Relaxed);
        self.gauges.resident_bytes.set(count(kiln_runtime::process_memory::resident().unwrap_or(0)));
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            let _ = writeln!(text, "# the numbers cannot be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_words_and_pools_have_their_bytes() {
        let metrics = Metrics::new();
        metrics.ended("shapes", End::Done);
        metrics.refused(Refused::Full);
        metrics.took("shapes", Timings::default());
        metrics.answered("GET", "/v1/jobs/{id}", 404, Duration::from_millis(20));
        let memory = Memory { weights: 5, bodies: 6, links: 7, n_loads: 3, n_evictions: 2 };
        let fleet = Some(FleetMoment { workers: 4, dead: 0 });
        let moment = Moment { queued: 0, oldest: Duration::ZERO, drawing: 0, memory, fleet };
        let text = metrics.text(&moment);
        for line in [
            "kiln_jobs_total{model=\"shapes\",end=\"done\"} 1",
            "kiln_refusals_total{reason=\"queue_full\"} 1",
            "kiln_job_phase_seconds_count{model=\"shapes\",phase=\"denoising\"} 1",
            "kiln_http_answer_seconds_bucket{le=\"0.025\",route=\"/v1/jobs/{id}\",status=\"4xx\"} 1",
            "kiln_memory_bytes{pool=\"weights\"} 5",
            "kiln_memory_bytes{pool=\"bodies\"} 6",
            "kiln_memory_bytes{pool=\"links\"} 7",
            "kiln_engine_loads_total 3",
            "kiln_engine_evictions_total 2",
            "kiln_fleet_workers 4",
            "kiln_fleet_dead_jobs 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
