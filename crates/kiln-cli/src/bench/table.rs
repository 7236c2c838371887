//! The measurements as Markdown and as JSON.

use std::fmt::Write;
use std::thread;

use kiln_runtime::Request;
use serde_json::{Value, json};

use super::row::Row;
use crate::args::BenchMemoryArgs;
use crate::output::bytes;

pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| model | offload | VAE tile | peak | predicted | a step | beside the first row | decoding | picture, beside its model's first |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let tile = row.vae_tile.map_or_else(|| "none".into(), |tile| tile.to_string());
        let error = 100.0 * (row.predicted_bytes as f64 / row.peak_bytes.max(1) as f64 - 1.0);
        let picture = row.psnr.map_or_else(|| "identical".into(), |psnr| format!("{psnr:.1} dB"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {tile} | {} | {} ({error:+.1}%) | {:.3} s | {:.2} x | {:.2} s | {picture} |",
            row.model,
            row.offload,
            bytes(row.peak_bytes),
            bytes(row.predicted_bytes),
            row.step_seconds,
            row.step_ratio,
            row.decode_seconds,
        );
    }
    text
}

pub(super) fn json(rows: &[Row], request: &Request, args: &BenchMemoryArgs) -> Value {
    json!({
        "height": request.height,
        "width": request.width,
        "steps": request.steps,
        "rounds": args.rounds,
        "threads": thread::available_parallelism().ok().map(usize::from).into_iter().chain(args.execution.threads).min(),
        "kiln": env!("CARGO_PKG_VERSION"),
        "rows": rows,
    })
}
