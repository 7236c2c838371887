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

/// A text that may quote what a file holds: cut in its middle where it is long, control characters escaped.
fn in_short(text: &str) -> String {
    const HEAD: usize = 400;
    const TAIL: usize = 160;
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let escaped = |part: &str| -> String {
        part.chars().flat_map(|c| if is_plain(c) { vec![c] } else { c.escape_default().collect() }).collect()
    };
    match text.char_indices().nth(HEAD + TAIL) {
        None => escaped(text),
        Some(_) => {
            let head: String = text.chars().take(HEAD).collect();
            let tail: Vec<char> = text.chars().rev().take(TAIL).collect();
            format!("{}...{}", escaped(&head), escaped(&tail.into_iter().rev().collect::<String>()))
        }
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
