//! Resident memory over time, a panel for each way to spend it.

use std::fmt::Write;

use super::row::Row;
use crate::memtrace::Recording;
use crate::output::bytes;

const WIDTH: f64 = 900.0;
const PANEL: f64 = 96.0;
/// Left of a panel for numbers, and above it for its name.
const LEFT: f64 = 70.0;
const ABOVE: f64 = 26.0;
const BELOW: f64 = 30.0;

/// Fills of phases, by the beginning of their names.
const PHASES: [(&str, &str); 3] = [("load", "#dde5ee"), ("steps", "#e6f2e6"), ("decode", "#fbeedd")];

/// Fill of what comes before the first phase.
const OTHER: &str = "#f4f4f4";

/// How bytes and seconds lie in a panel.
struct Scale {
    seconds: f64,
    bytes: f64,
}

impl Scale {
    fn x(&self, seconds: f64) -> f64 {
        LEFT + (WIDTH - LEFT - 10.0) * seconds / self.seconds
    }

    /// From a panel's lower edge upwards.
    fn height(&self, bytes: u64) -> f64 {
        PANEL * bytes as f64 / self.bytes
    }
}

/// All panels have the same seconds; bytes go up to each one's own peak, for one may be a twentieth of another.
pub(super) fn svg(rows: &[Row]) -> String {
    let seconds = rows.iter().map(|row| row.recording.seconds()).fold(0.1, f64::max);
    let total = rows.len() as f64 * (PANEL + ABOVE) + BELOW;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, row) in rows.iter().enumerate() {
        let scale = Scale { seconds, bytes: row.peak_bytes.max(1) as f64 * 1.05 };
        let bottom = (i + 1) as f64 * (PANEL + ABOVE);
        panel(&mut text, row, &scale, bottom);
    }
    axis(&mut text, seconds, total - BELOW);
    legend(&mut text);
    text.push_str("</svg>\n");
    text
}

/// Writing to a string cannot fail.
fn panel(text: &mut String, row: &Row, scale: &Scale, bottom: f64) {
    let tile = row.vae_tile.map_or_else(String::new, |tile| format!(", VAE tile {tile}"));
    let name = escape(&format!("{}: offload {}{tile}", row.model, row.offload));
    let top = bottom - PANEL;
    phases(text, &row.recording, scale, bottom);
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{:.0}\" font-weight=\"bold\">{name}, peak {}</text>",
        top - 5.0,
        bytes(row.peak_bytes)
    );
    let peak = bottom - scale.height(row.peak_bytes);
    let _ = writeln!(
        text,
        "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{peak:.1}\" y2=\"{peak:.1}\" stroke=\"#c33\" stroke-dasharray=\"3 3\"/>\n\
         <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#c33\">{}</text>\n\
         <text x=\"{:.0}\" y=\"{bottom:.1}\" text-anchor=\"end\">0</text>",
        WIDTH - 10.0,
        LEFT - 4.0,
        peak + 4.0,
        bytes(row.peak_bytes),
        LEFT - 4.0,
    );
    let _ = write!(text, "<polyline fill=\"none\" stroke=\"#246\" stroke-width=\"1.2\" points=\"");
    for (seconds, bytes) in thinned(&row.recording, scale) {
        let _ = write!(text, "{:.1},{:.1} ", scale.x(seconds), bottom - scale.height(bytes));
    }
    text.push_str("\"/>\n");
}

fn phases(text: &mut String, recording: &Recording, scale: &Scale, bottom: f64) {
    let ends = recording.phases.iter().skip(1).map(|(start, _)| *start).chain([recording.seconds()]);
    for ((start, name), end) in recording.phases.iter().zip(ends) {
        let (x, width) = (scale.x(*start), scale.x(end) - scale.x(*start));
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{PANEL}\" fill=\"{}\"><title>{}</title></rect>",
            bottom - PANEL,
            fill(name),
            escape(name)
        );
        if width > 6.0 * name.len() as f64 {
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#567\">{}</text>",
                x + 3.0,
                bottom - 4.0,
                escape(name)
            );
        }
    }
}

fn fill(phase: &str) -> &'static str {
    PHASES.iter().find(|(name, _)| phase.starts_with(name)).map_or(OTHER, |(_, fill)| fill)
}

/// The least and the most of each pixel's samples, so that no peak is lost.
fn thinned(recording: &Recording, scale: &Scale) -> Vec<(f64, u64)> {
    let mut points: Vec<(f64, u64)> = Vec::new();
    let pixel = |(seconds, _): &(f64, u64)| scale.x(*seconds) as u64;
    for samples in recording.samples.chunk_by(|a, b| pixel(a) == pixel(b)) {
        let least = samples.iter().min_by_key(|(_, bytes)| *bytes);
        let most = samples.iter().max_by_key(|(_, bytes)| *bytes);
        let mut both: Vec<(f64, u64)> = least.into_iter().chain(most).copied().collect();
        both.sort_by(|a, b| f64::total_cmp(&a.0, &b.0));
        points.append(&mut both);
    }
    points
}

fn axis(text: &mut String, seconds: f64, bottom: f64) {
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
    let step = step.into_iter().find(|step| seconds / step <= 10.0).unwrap_or(1000.0);
    let scale = Scale { seconds, bytes: 1.0 };
    for i in 0..=(seconds / step) as usize {
        let at = i as f64 * step;
        let x = scale.x(at);
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom:.0}\" y2=\"{:.0}\" stroke=\"#888\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{at:.1} s</text>",
            bottom + 4.0,
            bottom + 17.0
        );
    }
}

/// In the upper right corner, beside the first panel's name.
fn legend(text: &mut String) {
    for (i, (name, fill)) in PHASES.iter().rev().enumerate() {
        let x = WIDTH - 10.0 - 70.0 * (i + 1) as f64;
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"8\" width=\"12\" height=\"12\" fill=\"{fill}\" stroke=\"#888\"/>\n\
             <text x=\"{}\" y=\"18\">{name}</text>",
            x + 16.0
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
