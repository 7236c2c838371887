//! A fleet for people's eyes.

use kiln_fleet::{Card, Order, Overview, Packed, Settings};
use kiln_server::store::{Ending, now};

use crate::output;

pub(super) fn settings(settings: &Settings) {
    let results = settings.results.as_deref().unwrap_or("nats");
    let rows = [
        ("results", results.to_owned()),
        ("keep", format!("{}, at most {} in NATS", time(settings.keep), output::bytes(settings.keep_bytes))),
        ("lease", format!("{} s", settings.lease)),
        ("attempts", settings.attempts.to_string()),
        ("queue", format!("{} jobs", settings.queue)),
        ("replicas", settings.replicas.to_string()),
    ];
    rows.iter().for_each(|(name, value)| output::data(&format!("{name:<9} {value}")));
}

pub(super) fn overview(overview: &Overview) {
    output::data(&format!("fleet {} on nats-server {}", overview.fleet, overview.server));
    let jobs: usize = overview.queues.iter().map(|depth| depth.jobs).sum();
    output::data(&format!(
        "{jobs} jobs wait or are drawn, the oldest for {}; {} were given up",
        time(overview.oldest_seconds as u64),
        overview.dead
    ));
    output::data("");
    match overview.workers.is_empty() {
        true => output::data("no workers: kiln worker --nats URL starts one"),
        false => overview.workers.iter().for_each(worker),
    }
    if !overview.queues.is_empty() {
        output::data("");
    }
    for depth in &overview.queues {
        let client = client(&depth.client);
        let nobody = if depth.workers == 0 { "; no worker can draw them" } else { "" };
        output::data(&format!(
            "{} for {}, bundle {}, client {client}: {} jobs{nobody}",
            depth.lane.model,
            depth.lane.class,
            depth.lane.short(),
            depth.jobs
        ));
    }
}

fn worker(card: &Card) {
    let state = match &card.trouble {
        _ if card.is_draining => "ending".to_owned(),
        Some(trouble) => format!("takes no jobs: {trouble}"),
        None => format!("draws {}", card.drawing),
    };
    let pace = match card.busy_seconds > 0.0 {
        true => format!(", {:.2} s a job", card.busy_seconds / card.done.max(1) as f64),
        false => String::new(),
    };
    output::data(&format!(
        "worker {} ({}), up {}: {state}; {} done{pace}, {} failed, {} loaded",
        card.name,
        card.version,
        time(now().saturating_sub(card.since)),
        card.done,
        card.failed,
        output::bytes(card.loaded_bytes)
    ));
    for model in &card.models {
        let lane = &model.lane;
        output::data(&format!("  {} for {}, bundle {}: {}", lane.model, lane.class, lane.short(), model.load));
    }
}

pub(super) fn jobs(orders: &[Order]) {
    for order in orders {
        let record = &order.record;
        let state = match &order.worker {
            Some(worker) => format!("at worker {worker}"),
            None => "waits".into(),
        };
        let faults =
            if order.faults.is_empty() { String::new() } else { format!(" ({})", order.faults.join(", ")) };
        output::data(&format!(
            "{} {} client {}: {state} for {}{faults}",
            record.id,
            record.spec.model,
            client(&record.client.0),
            time(now().saturating_sub(record.created)),
        ));
    }
}

pub(super) fn dead(orders: &[Order]) {
    for order in orders {
        let record = &order.record;
        let why = match &record.ending {
            Ending::Failed { fault } => fault.message.as_str(),
            _ => "",
        };
        output::data(&format!("{} {}: {why}", record.id, record.spec.model));
    }
}

pub(super) fn bundles(bundles: &[Packed]) {
    for packed in bundles {
        output::data(&format!(
            "{} {} for {}, {}",
            packed.bundle,
            packed.model,
            packed.class,
            output::bytes(packed.size)
        ));
    }
}

/// A client's name, where it has one.
fn client(name: &str) -> &str {
    if name.is_empty() { "-" } else { name }
}

fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
