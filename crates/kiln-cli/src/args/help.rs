//! What `kiln --help` says below the commands, from the tables that the program goes by.

use std::fmt::Write;

use crate::environment;
use crate::failure::Exit;

/// Exit codes and environment variables.
pub(super) fn after() -> String {
    let mut text = String::from("Exit codes:\n  0  success\n");
    for exit in Exit::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}  {}", exit as u8, exit.meaning());
    }
    text.push_str("\nEnvironment:\n");
    for variable in environment::all() {
        let _ = writeln!(text, "  {:<23}  {}", variable.name, variable.meaning);
    }
    text.truncate(text.trim_end().len());
    text
}
