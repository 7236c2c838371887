//! Flags of `kiln serve` and `kiln worker` that the models file holds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Error, ValueHint};
use kiln_server::config::{ModelConfig, ModelsFile};
use serde_json::Value;

use super::variables::{blame, command, reason};
use super::{ACTIONS, SERVE, WORKER};
use crate::failure::Failure;

/// Commands that take a models file.
const SERVED: [&str; 2] = [SERVE, WORKER];

/// A setting of the file, as words of the command line.
struct Setting {
    /// The flag.
    id: String,
    key: String,
    words: Vec<OsString>,
}

/// Parses `words`, to which the models file that they name, if any, adds flags that neither they nor the environment give.
pub(super) fn parse(command: &Command, words: &[OsString]) -> Result<ArgMatches, Error> {
    let at =
        words.iter().skip(1).position(|word| SERVED.iter().any(|name| word == name)).map_or(0, |at| at + 2);
    let parse = |settings: &[Setting]| {
        let added = settings.iter().flat_map(|setting| &setting.words);
        command.clone().try_get_matches_from(words[..at].iter().chain(added).chain(&words[at..]))
    };
    let settings = if at > 0 { settings(command, words)? } else { None };
    let Some((path, settings)) = settings else {
        return parse(&[]).map_err(|error| blame(command, error));
    };
    parse(&settings).map_err(|error| {
        let is_alone = |setting: &&Setting| {
            parse(std::slice::from_ref(*setting)).is_err_and(|other| reason(&other) == reason(&error))
        };
        match settings.iter().find(is_alone) {
            Some(setting) if parse(&[]).is_ok() => refuse(&path, &setting.key, &reason(&error)),
            _ => blame(command, error),
        }
    })
}

/// The models file that is served, and what it adds.
fn settings(command: &Command, words: &[OsString]) -> Result<Option<(PathBuf, Vec<Setting>)>, Error> {
    // What is wrong on the command line is told when everything is parsed.
    let Ok(matches) = command.clone().ignore_errors(true).try_get_matches_from(words) else { return Ok(None) };
    let Some((called, given)) = matches.subcommand() else { return Ok(None) };
    if !SERVED.contains(&called) {
        return Ok(None);
    }
    let Some(path) = given.get_one::<PathBuf>("models").filter(|path| is_models_file(path)) else {
        return Ok(None);
    };
    // A file that is wrong is told where it is read for its models.
    let Ok(file) = ModelsFile::read(path) else { return Ok(None) };
    let is_open = |setting: &Setting| {
        let source = given.value_source(&setting.id);
        !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let settings = read(command, called, path, &file)?.into_iter().filter(is_open).collect();
    Ok(Some((path.clone(), settings)))
}

/// What a models file says besides models, as flags of a command. What the other command alone has is not for this one.
fn read(command: &Command, called: &str, path: &Path, file: &ModelsFile) -> Result<Vec<Setting>, Error> {
    let (own, all) = (flags(command, &[called]), flags(command, &SERVED));
    let setting = |(key, value): (&String, &Value)| {
        let flag = all.get(key).ok_or_else(|| refuse(path, key, "kiln serve has no such flag"))?;
        let words = words_of(flag, value, path).map_err(|why| refuse(path, key, why))?;
        Ok(own.contains_key(key).then(|| Setting { id: flag.get_id().to_string(), key: key.clone(), words }))
    };
    file.settings.iter().filter_map(|entry| setting(entry).transpose()).collect()
}

/// The flags of commands that are settings, by their keys.
fn flags<'a>(command: &'a Command, called: &[&str]) -> BTreeMap<String, &'a Arg> {
    let commands = called.iter().filter_map(|name| command.find_subcommand(name));
    let named = commands.flat_map(Command::get_arguments).filter_map(|flag| Some((flag.get_long()?, flag)));
    let settings = named.filter(|(name, _)| !ACTIONS.contains(name));
    settings.map(|(name, flag)| (name.replace('-', "_"), flag)).collect()
}

/// The models of a file, which says nothing besides that is wrong.
pub(crate) fn models(path: &Path) -> Result<Vec<ModelConfig>, Failure> {
    let file = ModelsFile::read(path)?;
    read(&command(), SERVE, path, &file).map_err(|error| Failure::usage(reason(&error)))?;
    Ok(file.models)
}

/// Whether a path is that of a models file and not of a model.
pub(crate) fn is_models_file(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") && !path.is_dir()
}

/// A value as words of the command line: none where it is what goes without saying.
fn words_of(flag: &Arg, value: &Value, file: &Path) -> Result<Vec<OsString>, &'static str> {
    let name = format!("--{}", flag.get_long().unwrap_or_default());
    match (flag.get_action(), value) {
        (_, Value::Null) => Ok(Vec::new()),
        (ArgAction::SetTrue, Value::Bool(is_on)) => Ok(is_on.then(|| name.into()).into_iter().collect()),
        (ArgAction::SetTrue, _) => Err("is not true or false"),
        (ArgAction::Append, Value::Array(values)) => {
            values.iter().map(|value| word(&name, flag, value, file)).collect()
        }
        (_, value) => Ok(vec![word(&name, flag, value, file)?]),
    }
}

/// A flag with a value; paths are relative to the file's folder.
fn word(name: &str, flag: &Arg, value: &Value, file: &Path) -> Result<OsString, &'static str> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err("is not a text or a number"),
    };
    let mut word = OsString::from(format!("{name}="));
    match flag.get_value_hint() {
        ValueHint::AnyPath => word.push(file.parent().unwrap_or(Path::new("")).join(text)),
        _ => word.push(text),
    }
    Ok(word)
}

fn refuse(path: &Path, key: &str, reason: &str) -> Error {
    Error::raw(ErrorKind::InvalidValue, format!("{}: {key}: {reason}\n", path.display()))
}
