use kiln_bundle::OutputFolder;
use kiln_compile::{Checkpoint, TraceOptions, trace, trace_inside};
use kiln_graph::{AttentionPolicy, Cuts, ElementType, EmitPolicy, Flavor, PrecisionPolicy};
use kiln_nets::Sizes;
use serde_json::json;

use crate::args::{ConsumerChoice, FlavorChoice, TraceArgs, WeightsChoice};
use crate::consumers::Form;
use crate::failure::Failure;
use crate::model::Model;
use crate::models::sizes;
use crate::output;
use crate::progress::Bar;

pub(crate) fn run(args: &TraceArgs) -> Result<(), Failure> {
    args.consumer.map_or(Ok(()), |consumer| consumer.check(args))?;
    let form = args.consumer.map(ConsumerChoice::form);
    let policy = policy(args, form.as_ref())?;
    let checkpoint = Model::open(&args.checkpoint_path)?.checkpoint(&args.checkpoint.options())?;
    let sizes = match sizes(&args.sizes, &checkpoint)? {
        Sizes::Dynamic if form.as_ref().is_some_and(|form| form.fixed == Some(true)) => own_size(&checkpoint),
        sizes => sizes,
    };
    let options = TraceOptions { policy, sizes, ..TraceOptions::default() };
    let is_inside = args.weights == Some(WeightsChoice::Inside) || form.is_some_and(|form| form.inside);
    let trace = if is_inside { trace_inside } else { trace };
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

/// One picture of the size that the model was trained for.
fn own_size(checkpoint: &Checkpoint) -> Sizes {
    let [height, width] = checkpoint.default_size().map(|side| side / checkpoint.scale_factor());
    Sizes::Static { batch: 1, height, width }
}

fn policy(args: &TraceArgs, form: Option<&Form>) -> Result<EmitPolicy, Failure> {
    let attention = args.checkpoint.attention.or(form.map(|form| form.attention)).unwrap_or_default();
    let flavor = match args.flavor {
        FlavorChoice::Standard => Flavor::Standard,
        FlavorChoice::Onnxruntime => Flavor::OnnxRuntime,
        FlavorChoice::OnnxruntimeCuda => Flavor::OnnxRuntimeCuda,
    };
    if let (Some(opset @ ..=22), AttentionPolicy::Fused, Flavor::Standard) = (args.opset, attention, flavor) {
        return Err(Failure::usage(format!("opset: {opset} has no Attention, which fused attention needs"))
            .with_hint("--attention plain needs no operator of its own"));
    }
    Ok(EmitPolicy {
        attention,
        precision: PrecisionPolicy {
            scopes: args.keep_f32.iter().map(|scope| (scope.clone(), ElementType::F32)).collect(),
            storage: args.storage,
            ..PrecisionPolicy::uniform(args.precision)
        },
        flavor,
        cuts: if args.cut.is_empty() { Cuts::None } else { Cuts::At(args.cut.clone()) },
        opset: args.opset,
        prompts: Vec::new(),
        finite_masks: form.is_some_and(|form| form.finite_masks),
    })
}
