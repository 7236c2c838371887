//! The only places that print. Data goes to stdout, everything else to stderr.

use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use kiln_bundle::BundleError;

/// Why data could not be written, the first time.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Prints a line of data; [`finish`] tells whether all were written.
pub(crate) fn data(line: &str) {
    note(writeln!(io::stdout(), "{line}"));
}

/// What the command line alone answers: help and versions as data. A wrong command line ends the process.
pub(crate) fn answer(answer: &clap::Error) {
    if answer.use_stderr() {
        answer.exit();
    }
    note(answer.print());
}

/// Fails where data was lost; a reader that has gone away is not an error.
pub(crate) fn finish() -> Result<(), BundleError> {
    note(io::stdout().flush());
    match LOST.get() {
        Some(e) => Err(BundleError::io(Path::new("standard output"), e)),
        None => Ok(()),
    }
}

fn note(written: io::Result<()>) {
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => drop(LOST.set(e)),
        _ => {}
    }
}

/// Tells the user something, in one line that is fit for a terminal.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", in_short(line));
}

/// A text that may quote what a file holds: control characters escaped, and cut in its middle where it is longer than any
/// text of kiln's own.
fn in_short(text: &str) -> String {
    const HEAD: usize = 700;
    const TAIL: usize = 200;
    let turns_text =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut escaped = String::new();
    for c in text.chars() {
        match c.is_control() || turns_text(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    let (cut, rest) =
        (escaped.floor_char_boundary(HEAD), escaped.ceil_char_boundary(escaped.len().saturating_sub(TAIL)));
    match escaped.len() > HEAD + TAIL {
        true => format!("{}...{}", &escaped[..cut], &escaped[rest..]),
        false => escaped,
    }
}

/// A number of bytes as people read it.
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
