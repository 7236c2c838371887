//! Environment variables of flags: each of `kiln serve` and `kiln worker` has one.

use std::collections::BTreeSet;
use std::env::{args_os, var_os, vars_os};
use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Error, FromArgMatches};

use super::{Cli, FLEET, SERVE, WORKER, file};

/// Commands whose flags have variables, and what the names of these begin with.
const PREFIXES: [(&str, &str); 2] = [(SERVE, "KILN_SERVE_"), (WORKER, "KILN_WORKER_")];

impl Cli {
    /// What command line, environment and models file say.
    pub(crate) fn read() -> Result<Cli, Error> {
        let mut command = command();
        let matches = matches(&command)?;
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// What command line, environment and models file say, in that order.
pub(crate) fn matches(command: &Command) -> Result<ArgMatches, Error> {
    file::parse(command, &args_os().collect::<Vec<OsString>>())
}

/// The command line, with the variables of its flags.
pub(crate) fn command() -> Command {
    let with_variables = |command: Command, (name, prefix): (&str, &'static str)| {
        command.mut_subcommand(name, |below| below.mut_args(|arg| with_variable(prefix, arg)))
    };
    let with_queue = |below: Command| {
        below.mut_args(|arg| if arg.get_id() == "nats" { arg.env("KILN_NATS").hide_env(true) } else { arg })
    };
    let command = PREFIXES.into_iter().fold(Cli::command(), with_variables);
    command.mut_subcommand(FLEET, |fleet| fleet.mut_subcommands(with_queue))
}

/// Variables that are set as if a command had a flag of this name, which it has not.
pub(crate) fn unknown(called: &str) -> Vec<String> {
    let command = command();
    let Some((_, prefix)) = PREFIXES.into_iter().find(|(name, _)| *name == called) else { return Vec::new() };
    let flags = command.find_subcommand(called).into_iter().flat_map(Command::get_arguments);
    let known: BTreeSet<String> = flags.map(|arg| name(prefix, arg)).collect();
    let set = vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let mut unknown: Vec<_> = set.filter(|name| name.starts_with(prefix) && !known.contains(name)).collect();
    unknown.sort();
    unknown
}

/// The name of a flag's variable.
fn name(prefix: &str, arg: &Arg) -> String {
    let flag = arg.get_long().unwrap_or(arg.get_id().as_str());
    format!("{prefix}{}", flag.to_uppercase().replace('-', "_"))
}

fn with_variable(prefix: &str, arg: Arg) -> Arg {
    let name = name(prefix, &arg);
    // A flag that other commands have, too, has their variable where this one is not set.
    let arg = match arg.get_env().is_some() && var_os(&name).is_none() {
        true => arg,
        false => arg.env(name),
    };
    let arg = arg.hide_env(false).hide_env_values(true);
    match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(truth),
        ArgAction::Append => arg.value_delimiter(','),
        _ => arg,
    }
}

fn truth(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("is not true, false, 1 or 0"),
    }
}

/// Names the variable in an error that the command line alone would not have.
pub(super) fn blame(command: &Command, error: Error) -> Error {
    let has_error = |kept: &str| {
        let parsed = with_one_variable(command.clone(), kept).try_get_matches();
        parsed.is_err_and(|other| reason(&other) == reason(&error))
    };
    if !error.use_stderr() || has_error("") {
        return error;
    }
    let set = set(command);
    let names: Vec<_> = set.iter().filter(|name| has_error(name)).map(String::as_str).collect();
    let names = if names.is_empty() { set.join(", ") } else { names.join(", ") };
    Error::raw(error.kind(), format!("{names}: {}\n", reason(&error)))
}

/// What is wrong, in one line.
pub(super) fn reason(error: &Error) -> String {
    let text = error.to_string();
    let reason = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    reason.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Variables of the command that is called which are set.
fn set(command: &Command) -> Vec<String> {
    let called = args_os().skip(1).find_map(|word| command.find_subcommand(word));
    let variables = called.into_iter().flat_map(Command::get_arguments).filter_map(Arg::get_env);
    variables.filter(|name| var_os(name).is_some()).map(|name| name.to_string_lossy().into_owned()).collect()
}

/// The command line with the variable of this name alone.
fn with_one_variable(command: Command, kept: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    let command = command.mut_args(|arg| match arg.get_env().is_some_and(|name| name == kept) {
        true => arg,
        false => arg.env(None),
    });
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, |below| with_one_variable(below, kept)))
}
