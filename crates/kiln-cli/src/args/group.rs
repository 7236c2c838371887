//! Arguments that are taken or refused together.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Id};

use crate::failure::Failure;

/// Arguments of which it is known which ones were given.
pub(crate) struct Group<T> {
    pub(crate) args: T,
    given: Vec<String>,
}

impl<T> Group<T> {
    /// Refuses all of them; `reason` says why the one that was given has no meaning.
    pub(crate) fn refuse(&self, reason: &str) -> Result<(), Failure> {
        match self.given.first() {
            None => Ok(()),
            Some(option) => Err(Failure::usage(format!("{option}: {reason}"))),
        }
    }
}

impl<T: Args> FromArgMatches for Group<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Group<T>, Error> {
        Group::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Group<T>, Error> {
        let command = T::augment_args(Command::new("group"));
        let is_given = |id: &Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let given = command.get_arguments().filter(|argument| is_given(argument.get_id()));
        let given = given.filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect();
        Ok(Group { args: T::from_arg_matches_mut(matches)?, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Group::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Args> Args for Group<T> {
    fn group_id() -> Option<Id> {
        T::group_id()
    }

    fn augment_args(command: Command) -> Command {
        T::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::augment_args_for_update(command)
    }
}
