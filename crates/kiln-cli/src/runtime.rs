use kiln_native::{Library, Origin, install, locate};
use serde_json::json;

use crate::args::{LibraryChoice, RuntimeArgs, RuntimeCommand};
use crate::failure::Failure;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &RuntimeArgs) -> Result<(), Failure> {
    match &args.command {
        RuntimeCommand::Install { library } => {
            let found = fetch(match library {
                LibraryChoice::Cpu => Library::OnnxRuntimeCpu,
                LibraryChoice::Cuda => Library::OnnxRuntimeCuda,
                LibraryChoice::TensorrtRtx => Library::TensorrtRtx,
            })?;
            output::data(&found.path.display().to_string());
            Ok(())
        }
        RuntimeCommand::List { json } => list(*json),
    }
}

/// A library, fetched if need be.
pub(crate) fn find(library: Library) -> Result<kiln_native::Found, Failure> {
    match locate(library)? {
        Some(found) => Ok(found),
        None => fetch(library),
    }
}

/// Fetches a library unless it is there, saying so in one line.
pub(crate) fn fetch(library: Library) -> Result<kiln_native::Found, Failure> {
    if library.can_be_fetched() && kiln_native::install_dir(library).is_ok_and(|folder| !folder.exists()) {
        let cache = kiln_native::cache_dir()?;
        output::say(&format!("fetching {library} with pip into {}", cache.display()));
    }
    let bar = Bar::bytes("fetching");
    Ok(install(library, &mut |progress| bar.installing(progress))?)
}

fn list(as_json: bool) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for library in Library::ALL {
        let found = locate(library)?;
        let origin = found.as_ref().map(|found| match found.origin {
            Origin::Variable(name) => name.to_owned(),
            Origin::Program => "beside the program".into(),
            Origin::Installed => "installed by kiln".into(),
        });
        let path = found.map(|found| found.path.display().to_string());
        if !as_json {
            let place = match (&path, &origin) {
                (Some(path), Some(origin)) => format!("{path} ({origin})"),
                _ if library.can_be_fetched() => {
                    format!("not found; kiln runtime install {} fetches it", library.name())
                }
                _ => format!("not found; {} names it", library.variable()),
            };
            output::data(&format!("{:<14}{library}: {place}", library.name()));
        }
        rows.push(
            json!({ "name": library.name(), "library": library.to_string(), "path": path, "origin": origin }),
        );
    }
    match as_json {
        true => output::data(&json!({ "libraries": rows }).to_string()),
        false => output::data("rten          built in"),
    }
    Ok(())
}
