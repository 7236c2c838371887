use kiln_bundle::{pack, unpack};

use crate::args::{BundleArgs, BundleCommand};
use crate::failure::Failure;
use crate::model::open_bundle;
use crate::models::seal_key;
use crate::{output, paths};

pub(crate) fn run(args: &BundleArgs) -> Result<(), Failure> {
    match &args.command {
        BundleCommand::Pack { bundle, out, level } => {
            if !(1..=19).contains(level) {
                return Err(Failure::usage(format!("level: {level} is not a number from 1 to 19")));
            }
            paths::check_outputs(std::slice::from_ref(out))?;
            pack(&open_bundle(bundle)?, out, *level)?;
            output::data(&out.display().to_string());
        }
        BundleCommand::Unpack { file, out } => {
            let bundle = unpack(file, out)?;
            // Whoever unpacks a bundle says that it is to be trusted.
            bundle.seal(&seal_key()?)?;
            output::data(&bundle.root().display().to_string());
        }
    }
    Ok(())
}
