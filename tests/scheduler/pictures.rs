//! Pictures of pipelines whose files name classes of schedulers, against diffusers.

use std::path::Path;

use kiln_compile::TraceOptions;
use kiln_graph::EmitPolicy;
use kiln_nets::Sizes;
use kiln_runtime::{Request, Size};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{bundle, copy_folder, edit_json, onnxruntime, pipeline, scratch, sd15};
use crate::support::References;

/// Largest difference of a colour, of 255.
const TOLERANCE: u8 = 2;

/// A model of its own, with an entry of `model_index.json` and changes of `scheduler_config.json`.
pub(super) fn model(index: Value, file: &Value) -> TempDir {
    let folder = scratch();
    copy_folder(&sd15(), folder.path());
    edit_json(&folder.path().join("model_index.json"), |content| content["scheduler"] = index);
    edit_json(&folder.path().join("scheduler/scheduler_config.json"), |content| {
        for (key, value) in file.as_object().into_iter().flatten() {
            content[key] = value.clone();
        }
    });
    folder
}

fn draw(model: &Path, scheduler: Option<&str>) -> Vec<u8> {
    let bundle = bundle(model, &TraceOptions::for_bundle(EmitPolicy::default(), Sizes::Dynamic));
    let mut request = Request::new("a red circle").seed(7).steps(4).size(Size::square(64));
    request.scheduler = scheduler.map(Into::into);
    let output = pipeline(bundle, onnxruntime()).generate(&request).expect("a picture");
    output.images[0].data().to_vec()
}

#[track_caller]
fn check(references: &References, case: &str, found: &[u8]) {
    let (expected, _) = references.u8(case);
    assert_eq!(found.len(), expected.len(), "{case}");
    let worst = found.iter().zip(&expected).map(|(found, expected)| found.abs_diff(*expected)).max();
    assert!(worst <= Some(TOLERANCE), "{case}: {worst:?} of 255 off");
}

#[test]
fn the_class_of_the_index_draws_what_it_draws_in_diffusers() {
    let references = References::open("scheduler_pictures.safetensors");
    for case in references.names() {
        let options = references.metadata(&case);
        let model = model(json!(["diffusers", options["index"]]), &options["file"]);
        check(&references, &case, &draw(model.path(), options["scheduler"].as_str()));
    }
}

/// A module of diffusers names its classes as diffusers does; an index without a scheduler leaves the choice to the
/// file.
#[test]
fn the_index_names_a_class_in_several_ways_or_not_at_all() {
    let references = References::open("scheduler_pictures.safetensors");
    let module = "diffusers.schedulers.scheduling_euler_ancestral_discrete";
    let ddim = json!({ "_class_name": "DDIMScheduler" });
    let of_module = model(json!([module, "EulerAncestralDiscreteScheduler"]), &ddim);
    check(&references, "index-euler-a", &draw(of_module.path(), None));
    let packed = model(json!(["diffusers", "FlashPackEulerAncestralDiscreteScheduler"]), &ddim);
    check(&references, "index-euler-a", &draw(packed.path(), None));
    let deis = references.metadata("deis")["file"].clone();
    for entry in [json!([null, null]), Value::Null] {
        check(&references, "deis", &draw(model(entry, &deis).path(), None));
    }
}
