use kiln_compile::{Architecture, CompileError, synthesize};

use crate::args::{ArchitectureChoice, SynthArgs};
use crate::failure::Failure;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &SynthArgs) -> Result<(), Failure> {
    let architecture = match args.architecture {
        ArchitectureChoice::Sd15 => Architecture::Sd15,
        ArchitectureChoice::Tiny => Architecture::Tiny,
    };
    let bar = Bar::bytes("writing");
    let folder = synthesize(architecture, args.dtype, args.seed, &args.out, &mut |done, total| {
        bar.at(done, total);
    });
    let folder = folder.map_err(|error| match error {
        CompileError::Bundle(error) => Failure::writing(error),
        other => other.into(),
    })?;
    drop(bar);
    output::data(&folder.display().to_string());
    Ok(())
}
