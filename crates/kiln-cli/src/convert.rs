use kiln_compile::{CheckpointOptions, Original, PredictionType};

use crate::args::{ConvertArgs, PredictionChoice};
use crate::failure::Failure;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let options = CheckpointOptions {
        prediction_type: args.prediction_type.map(PredictionChoice::prediction_type),
        components: args.components.components(),
        ..CheckpointOptions::default()
    };
    let original = Original::open_with(&args.file, &options)?;
    let bar = Bar::bytes("converting");
    let folder = original.save(&args.out, &mut |done, total| bar.at(done, total))?;
    drop(bar);
    output::data(&folder.display().to_string());
    Ok(())
}

impl PredictionChoice {
    pub(crate) fn prediction_type(self) -> PredictionType {
        match self {
            PredictionChoice::Epsilon => PredictionType::Epsilon,
            PredictionChoice::VPrediction => PredictionType::VPrediction,
        }
    }
}
