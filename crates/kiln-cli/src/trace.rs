use kiln_bundle::OutputFolder;
use kiln_compile::{TraceOptions, trace};
use kiln_graph::{Cuts, ElementType, EmitPolicy, Flavor, PrecisionPolicy};
use serde_json::json;

use crate::args::{FlavorChoice, TraceArgs};
use crate::failure::Failure;
use crate::model::Model;
use crate::models::sizes;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &TraceArgs) -> Result<(), Failure> {
    let checkpoint = Model::open(&args.checkpoint_path)?.checkpoint(&args.checkpoint)?;
    let options = TraceOptions {
        policy: policy(args),
        sizes: sizes(&args.sizes, &checkpoint)?,
        ..TraceOptions::default()
    };
    let folder = OutputFolder::open(&args.out).map_err(Failure::writing)?;
    let bar = Bar::bytes("tracing");
    let models = trace(&checkpoint, &options, folder.path(), &mut |progress| bar.compiling(progress))?;
    drop(bar);
    folder.publish()?;

    if args.json {
        let models: Vec<_> = models
            .iter()
            .map(|m| json!({ "file": m.file, "weights": m.weights, "operators": m.n_nodes, "weight_bytes": m.weight_bytes }))
            .collect();
        output::data(&json!({ "folder": args.out, "models": models }).to_string());
        return Ok(());
    }
    for model in models {
        let path = args.out.join(&model.file);
        let size = output::bytes(model.weight_bytes);
        output::data(&format!("{} ({} operators, {size} of weights)", path.display(), model.n_nodes));
    }
    Ok(())
}

fn policy(args: &TraceArgs) -> EmitPolicy {
    EmitPolicy {
        attention: args.checkpoint.attention(),
        precision: PrecisionPolicy {
            scopes: args.keep_f32.iter().map(|scope| (scope.clone(), ElementType::F32)).collect(),
            storage: args.storage,
            ..PrecisionPolicy::uniform(args.precision)
        },
        flavor: match args.flavor {
            FlavorChoice::Standard => Flavor::Standard,
            FlavorChoice::Onnxruntime => Flavor::OnnxRuntime,
            FlavorChoice::OnnxruntimeCuda => Flavor::OnnxRuntimeCuda,
        },
        cuts: if args.cut.is_empty() { Cuts::None } else { Cuts::At(args.cut.clone()) },
    }
}
