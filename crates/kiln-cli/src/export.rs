//! Bundles in the forms in which other servers have their models.

use std::fs;
use std::path::Path;

use kiln_bundle::{Bundle, BundleError, OutputFolder, copy};
use kiln_compile::file_name;
use kiln_server::config::check_name;
use kiln_server::inference::{VERSION, configuration};

use crate::args::{ExportArgs, ExportCommand, TritonArgs};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::output;

pub(crate) fn run(args: &ExportArgs) -> Result<(), Failure> {
    match &args.command {
        ExportCommand::Triton(args) => triton(args),
    }
}

/// Adds a model to a repository of Triton, as a whole or not at all.
fn triton(args: &TritonArgs) -> Result<(), Failure> {
    let bundle = open_bundle(&args.bundle)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => file_name(&args.bundle),
    };
    check_name("name", &name).map_err(Failure::usage)?;
    let folder = OutputFolder::open(&args.out.join(&name)).map_err(Failure::writing)?;
    copy(&bundle, &folder.path().join(VERSION))?;
    write(&folder.path().join("config.pbtxt"), &configuration(&name, &parameters(args)))?;
    write(&folder.path().join("README.md"), &readme(&name, &bundle))?;
    let folder = folder.publish().map_err(Failure::writing)?;
    output::data(&folder.display().to_string());
    Ok(())
}

fn parameters(args: &TritonArgs) -> Vec<(&'static str, String)> {
    let numbers = [
        ("threads", args.threads.map(u64::from)),
        ("batch", args.batch.map(u64::from)),
        ("memory_budget_bytes", args.memory_budget.map(|budget| budget.0)),
    ];
    numbers.into_iter().filter_map(|(key, number)| Some((key, number?.to_string()))).collect()
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|e| Failure::writing(BundleError::io(path, &e)))
}

fn readme(name: &str, bundle: &Bundle) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let target = bundle.manifest().target;
    format!(
        "# {name}\n\n\
         A model of kiln {version} for the target {target}, for Triton Inference Server with kiln's backend\n\
         `libtriton_kiln.so` in its folder `backends/kiln`. It takes `prompt` (TYPE_STRING [n]) and what `config.pbtxt`\n\
         lists besides, and gives `images` (TYPE_UINT8 [n, height, width, 3]), `seed` and `info`. `encoded_image`, the\n\
         files as PNG, has to be asked for.\n\n\
         ```python\n\
         import numpy\n\
         import tritonclient.http\n\n\
         client = tritonclient.http.InferenceServerClient(\"localhost:8000\")\n\
         prompt = tritonclient.http.InferInput(\"prompt\", [1], \"BYTES\")\n\
         prompt.set_data_from_numpy(numpy.array([b\"a red circle\"], dtype=object))\n\
         images = client.infer(\"{name}\", [prompt], parameters={{\"steps\": 20}}).as_numpy(\"images\")\n\
         ```\n"
    )
}
