use std::time::{Duration, SystemTime};

use kiln_compile::{CacheItem, ItemKind, Record};
use serde_json::{Value, json};

use crate::args::{CacheCommand, CacheCommandArgs};
use crate::failure::Failure;
use crate::{models, output};

pub(crate) fn run(args: &CacheCommandArgs) -> Result<(), Failure> {
    let cache = models::cache(&args.cache)?;
    let report = match &args.command {
        CacheCommand::List => list(&cache.items()?, args.json),
        CacheCommand::Show { name } => show(&cache.items()?, name, args.json)?,
        CacheCommand::Prune { max_size, older_than, dry_run } => {
            if max_size.is_none() && older_than.is_none() && !args.json {
                output::say("removing what was damaged; --max-size and --older-than remove more");
            }
            let age = older_than.map(|days| Duration::from_secs(u64::from(days) * 86_400));
            let pruned = cache.prune(max_size.map(|bytes| bytes.0), age, &[], *dry_run)?;
            if !args.json {
                pruned.items.iter().for_each(|name| output::data(name));
                let verb = if *dry_run { "would free" } else { "freed" };
                output::say(&format!("{verb} {}", output::bytes(pruned.bytes)));
            }
            json!({ "removed": pruned.items, "bytes": pruned.bytes, "dry_run": dry_run })
        }
        CacheCommand::Verify => {
            let checked = cache.verify()?;
            let damaged: Vec<String> =
                checked.iter().filter_map(|c| c.error.as_ref()).map(ToString::to_string).collect();
            if !args.json {
                for c in &checked {
                    let verdict = c.error.as_ref().map_or("ok".into(), ToString::to_string);
                    output::data(&format!("{}: {verdict}", c.item.name));
                }
            }
            if !damaged.is_empty() {
                return Err(Failure::input(cache.root(), &format!("{} items are damaged", damaged.len()))
                    .with_hint("kiln compile builds them anew"));
            }
            json!({ "checked": checked.len() })
        }
    };
    if args.json {
        output::data(&report.to_string());
    }
    Ok(())
}

fn list(items: &[CacheItem], as_json: bool) -> Value {
    if !as_json {
        for item in items {
            let days = age(item.last_used).as_secs_f64() / 86_400.0;
            let (kind, size) = (kind(item), output::bytes(item.bytes));
            output::data(&format!("{:<12}{:<46}{size:>10}, used {days:.1} days ago", kind, item.name));
        }
    }
    let describe = |item: &CacheItem| {
        json!({ "name": item.name, "kind": kind(item), "path": item.path, "bytes": item.bytes,
            "unused_seconds": age(item.last_used).as_secs() })
    };
    json!({ "items": items.iter().map(describe).collect::<Vec<_>>() })
}

fn show(items: &[CacheItem], name: &str, as_json: bool) -> Result<Value, Failure> {
    let exact = items.iter().find(|item| item.name == name);
    let mut found = items.iter().filter(|item| item.name.starts_with(name));
    let item = match (exact.or_else(|| found.next()), found.next().filter(|_| exact.is_none())) {
        (Some(item), None) => item,
        (None, _) => {
            return Err(Failure::usage(format!("the cache has no '{name}'")).with_hint("kiln cache list"));
        }
        (Some(first), Some(second)) => {
            let reason = format!("'{name}' is the beginning of {} and {}", first.name, second.name);
            return Err(Failure::usage(reason));
        }
    };
    let lines = match &item.kind {
        ItemKind::Entry(record) => describe_record(record),
        ItemKind::Bundle => vec![format!("a bundle; kiln inspect {}", item.path.display())],
        ItemKind::Quarantined(reason) => vec![format!("set aside: {reason}")],
        ItemKind::Damaged(reason) => vec![format!("damaged: {reason}")],
    };
    if !as_json {
        output::data(&item.path.display().to_string());
        lines.iter().for_each(|line| output::data(&format!("  {line}")));
    }
    let record = match &item.kind {
        ItemKind::Entry(record) => json!(record),
        _ => Value::Null,
    };
    Ok(json!({ "name": item.name, "kind": kind(item), "path": item.path, "record": record }))
}

fn describe_record(record: &Record) -> Vec<String> {
    let mut lines = vec![format!("built in {:.1} s", record.seconds)];
    if let Some(peak) = record.peak_bytes {
        lines.push(format!("building held up to {} in memory", output::bytes(peak)));
    }
    lines.extend(record.ingredients.iter().map(|(name, value)| format!("{name}: {value}")));
    lines.extend(record.emission.iter().map(|(name, value)| format!("emitted with {name}: {value}")));
    lines.extend(record.files.iter().map(|(name, file)| format!("{name}: {}", output::bytes(file.size))));
    lines
}

fn kind(item: &CacheItem) -> &'static str {
    match item.kind {
        ItemKind::Entry(_) => "part",
        ItemKind::Bundle => "bundle",
        ItemKind::Quarantined(_) => "quarantine",
        ItemKind::Damaged(_) => "damaged",
    }
}

fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}
