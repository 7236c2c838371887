//! Help, the manual and completions, from the table of arguments.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use crate::args::command;
use crate::failure::Failure;
use crate::{output, topics};

/// Writes what completes commands in a shell to standard output.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "kiln", &mut script);
    output::data(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Shows the help of a command, or a guide; without words, what there is.
pub(crate) fn help(words: &[String]) -> Result<(), Failure> {
    if let [word] = words
        && let Some(text) = topics::text(word)
    {
        output::data(text);
        return Ok(());
    }
    let mut shown = command();
    shown.build();
    let mut shown = &mut shown;
    for word in words {
        let found: Option<&mut Command> = shown.find_subcommand_mut(word);
        let hint = "kiln help lists commands and topics";
        shown = found.ok_or_else(|| {
            Failure::usage(format!("help: '{}' is neither a command nor a topic", word.escape_debug()))
                .with_hint(hint)
        })?;
    }
    output::data(shown.render_long_help().to_string().trim_end());
    Ok(())
}

/// Writes a page for the program and for each command that help lists.
pub(crate) fn pages(out: &Path) -> Result<(), Failure> {
    fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
    let mut command = command();
    command.build();
    write(&command, "kiln", out)
}

fn write(command: &Command, name: &str, out: &Path) -> Result<(), Failure> {
    let mut page = Vec::new();
    let shown = command.clone().name(name.to_owned()).display_name(name.to_owned());
    let rendered = clap_mangen::Man::new(shown).title(name.to_uppercase()).render(&mut page);
    let path = out.join(format!("{name}.1"));
    rendered.and_then(|()| fs::write(&path, &page)).map_err(|error| unwritable(&path, &error))?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write(below, &format!("{name}-{}", below.get_name()), out)?;
    }
    Ok(())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::writing(kiln_bundle::BundleError::io(path, error))
}
