//! What `kiln --help` says below the commands, from the tables that the program goes by.

use std::fmt::Write;

use kiln_runtime::scheduler::SchedulerClass;

use crate::environment;
use crate::failure::Exit;

/// Short names of schedulers in a line of help.
const NAMES_PER_LINE: usize = 10;

/// Exit codes and environment variables.
pub(super) fn after() -> String {
    let mut text = format!("{}\nExit codes:\n  0  success\n", crate::topics::list());
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

/// Names of schedulers, which the help of commands that draw ends with.
pub(super) fn schedulers() -> String {
    let names: Vec<&str> = SchedulerClass::short_names().collect();
    let lines: Vec<String> = names.chunks(NAMES_PER_LINE).map(|names| names.join(", ")).collect();
    let [lines, classes] =
        [lines.join(",\n  "), "and diffusers' classes, such as EulerDiscreteScheduler".into()];
    format!(
        "Schedulers:\n  {lines},\n  {classes};\n  :karras, :exponential or :beta behind one chooses the sigmas"
    )
}
