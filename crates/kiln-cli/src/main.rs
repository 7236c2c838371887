//! The `kiln` command: arguments to validated requests, progress, pictures and JSON.
#![allow(
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "doc comments of arguments are help texts, in which brackets are brackets"
)]

mod accuracy;
mod args;
mod backends;
mod bench;
mod build;
mod building;
mod bundles;
mod cache;
mod child;
mod compare;
mod compile;
mod consumers;
mod convert;
mod devices;
mod draw;
mod environment;
mod export;
mod failure;
#[cfg(unix)]
mod fault;
mod fleet;
mod generate;
mod inspect;
mod interrupt;
mod log;
mod manual;
mod measure;
mod memtrace;
mod model;
mod models;
mod output;
mod paths;
mod pictures;
mod plan;
mod progress;
mod runtime;
mod serve;
mod settings;
mod synth;
mod tasks;
mod topics;
mod trace;
mod verify;
mod worker;

use std::process::ExitCode;

use args::{Cli, Command, Work};
use failure::Failure;

fn main() -> ExitCode {
    environment::prepare();
    #[cfg(unix)]
    fault::watch();
    let result = match Cli::read() {
        Ok(cli) => start(&cli.command).and_then(|()| run(&cli.command)),
        Err(answer) => {
            output::answer(&answer);
            Ok(())
        }
    };
    match result.and_then(|()| output::finish().map_err(Failure::writing)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            interrupt::wait_if_ending();
            failure.report()
        }
    }
}

fn start(command: &Command) -> Result<(), Failure> {
    interrupt::watch(matches!(command, Command::Serve(_) | Command::Worker(_)))?;
    log::start()
}

fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Compile(args) => compile::run(args),
        Command::Work { work: Work::BuildEngine } => child::answer(build::work),
        Command::Work { work: Work::Measure } => child::answer(measure::work),
        Command::Work { work: Work::Draw } => child::answer(draw::work),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Measure(args) => measure::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Fleet(args) => fleet::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Bundle(args) => bundles::run(args),
        Command::Export(args) => export::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Runtime(args) => runtime::run(args),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Help { words } => manual::help(words),
        Command::Man { out } => manual::pages(out),
    }
}
