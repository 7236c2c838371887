//! What kiln says, in the server's log.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::error::{c_string, check};
use crate::sys;

/// Sends events there, from information on; once is enough.
pub(crate) fn start() {
    let lines = tracing_subscriber::fmt().with_writer(Lines).with_ansi(false).without_time().with_level(false);
    let _ = lines.with_max_level(Level::INFO).try_init();
}

/// A line in the server's log.
pub(crate) fn say(level: Level, message: &str) {
    let level = match level {
        Level::ERROR => sys::LOG_ERROR,
        Level::WARN => sys::LOG_WARN,
        _ => sys::LOG_INFO,
    };
    let message = c_string(message);
    // SAFETY: both texts end with a zero byte, and are copied.
    let status = unsafe { sys::TRITONSERVER_LogMessage(level, c"kiln".as_ptr(), 0, message.as_ptr()) };
    let _ = check(status);
}

struct Lines;

struct Line {
    level: Level,
    text: Vec<u8>,
}

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { level: Level::INFO, text: Vec::new() }
    }

    fn make_writer_for(&self, event: &Metadata<'_>) -> Line {
        Line { level: *event.level(), text: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().for_each(|line| say(self.level, line));
    }
}
