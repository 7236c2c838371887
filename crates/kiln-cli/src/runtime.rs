use kiln_native::{Library, Origin, locate};
use serde_json::json;

use crate::args::{LibraryChoice, RuntimeArgs, RuntimeCommand};
use crate::backends::fetch;
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(args: &RuntimeArgs) -> Result<(), Failure> {
    match &args.command {
        RuntimeCommand::Install { library } => {
            let path = fetch(match library {
                LibraryChoice::Cpu => Library::OnnxRuntimeCpu,
                LibraryChoice::Cuda => Library::OnnxRuntimeCuda,
                LibraryChoice::TensorrtRtx => Library::TensorrtRtx,
            })?;
            output::data(&path.display().to_string());
            Ok(())
        }
        RuntimeCommand::List { json } => list(*json),
    }
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
