use kiln_compile::{Original, PredictionType};

use crate::args::{ConvertArgs, PredictionChoice};
use crate::failure::Failure;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let original = Original::open(&args.file, args.prediction_type.map(PredictionChoice::prediction_type))?;
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
