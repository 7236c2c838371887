//! Files that are no LoRA, or none for the model.

use kiln_bundle::stable_diffusion::{TEXT_ENCODER, UNET};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_lora::{Lora, LoraFile, LoraPlan, ModelWeights};
use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

use super::{Tensors, write_tensors};
use crate::fixtures::scratch;

fn file(tensors: &[(&str, Dtype, &[usize])]) -> (TempDir, PathBuf) {
    let tensors: Tensors = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            ((*name).to_owned(), (*dtype, shape.to_vec(), vec![0; n]))
        })
        .collect();
    let folder = scratch();
    let path = folder.path().join("x.safetensors");
    write_tensors(&path, &tensors, None);
    (folder, path)
}

/// A text encoder and a UNet of one weight each.
fn model() -> ModelWeights {
    let mut model = ModelWeights::new();
    let weights = |names: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
        names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
    };
    model.insert(
        UNET,
        weights(&[
            ("conv_in.weight", &[8, 4, 3, 3]),
            ("conv_norm_out.weight", &[8]),
            ("mid_block.attentions.0.proj_in.weight", &[8, 6, 1, 1]),
            ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", &[8, 32]),
        ]),
        [],
    );
    model.insert(TEXT_ENCODER, weights(&[("encoder.layers.0.mlp.fc1.weight", &[6, 4])]), []);
    model
}

#[track_caller]
fn check_refused(tensors: &[(&str, Dtype, &[usize])], message: &str) {
    let (_folder, path) = file(tensors);
    let plan = |file: LoraFile| LoraPlan::new(&[Lora { file: Arc::new(file), weight: 1.0 }], &model());
    let error = LoraFile::open(&path).and_then(plan).expect_err(message).to_string();
    assert_eq!(error, format!("{}: {message}", path.display()));
}

fn pair<'a>(down: &'a str, up: &'a str, shapes: [&'a [usize]; 2]) -> [(&'a str, Dtype, &'a [usize]); 2] {
    [(down, Dtype::F16, shapes[0]), (up, Dtype::F16, shapes[1])]
}

#[test]
fn other_methods_are_refused_by_name() {
    for (key, method) in [
        ("base_model.model.conv_in.oft_r", "OFT of peft before 0.15"),
        ("base_model.model.conv_in.vera_lambda_b", "VeRA"),
        ("lora_unet_conv_in.lambda_layer", "T-LoRA"),
        ("lora_unet_conv_in.oft_diag", "kohya's first OFT"),
        ("lora_unet_conv_in.lora_down.bias", "LoRA with biases between its matrices"),
    ] {
        check_refused(&[(key, Dtype::F16, &[2])], &format!("'{key}': {method} is not supported"));
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let f16 = Dtype::F16;
    let lone = [("lora_unet_conv_in.dora_scale", f16, &[8, 1, 1, 1][..])];
    check_refused(&lone, "'lora_unet_conv_in.dora_scale' is not part of a LoRA");
    let half =
        [("lora_unet_conv_in.hada_w1_a", f16, &[8, 2][..]), ("lora_unet_conv_in.hada_w1_b", f16, &[2, 36])];
    check_refused(&half, "module 'lora_unet_conv_in' lacks its hada_w2_a");
    let stages = [("lora_unet_conv_in.oft_blocks", f16, &[4, 2, 4, 4][..])];
    check_refused(&stages, "module 'lora_unet_conv_in' has 4 stages of 2 blocks of 4 rows");
    let oblong = [("lora_unet_conv_in.oft_blocks", f16, &[2, 4, 3][..])];
    check_refused(&oblong, "module 'lora_unet_conv_in' turns by blocks of shape [2, 4, 3]");
    let nested = [("lora_unet_conv_in.oft_blocks", f16, &[2, 2, 2, 4, 4][..])];
    check_refused(&nested, "module 'lora_unet_conv_in' turns by blocks of shape [2, 2, 2, 4, 4]");
    check_refused(
        &[("lora_unet_conv_in.alpha", Dtype::F32, &[])],
        "module 'lora_unet_conv_in' has an alpha, and nothing that it scales",
    );
}

#[test]
fn what_mixes_inputs_is_not_for_a_weight_without_them() {
    let parts = [("a1", [1, 1]), ("a2", [1, 1]), ("b1", [8, 1]), ("b2", [1, 1])];
    let names = parts.map(|(part, _)| format!("lora_unet_conv_norm_out.{part}.weight"));
    let tensors: Vec<_> =
        names.iter().zip(&parts).map(|(name, (_, shape))| (name.as_str(), Dtype::F16, &shape[..])).collect();
    let reason =
        "module 'lora_unet_conv_norm_out' has shape [8, 1], and this model's 'conv_norm_out.weight' [8]";
    check_refused(&tensors, reason);
}

/// Whatever lies on disk for it: the file is a hole.
#[test]
fn ranks_beyond_the_weights_sides_are_refused_unread() {
    const RANK: u64 = 20_000_000;
    let module = "lora_unet_conv_in";
    let kinds = [
        vec![("lora_down.weight", vec![RANK, 4, 3, 3]), ("lora_up.weight", vec![8, RANK, 1, 1])],
        vec![
            ("hada_w1_a", vec![8, RANK]),
            ("hada_w1_b", vec![RANK, 36]),
            ("hada_w2_a", vec![8, RANK]),
            ("hada_w2_b", vec![RANK, 36]),
        ],
        vec![("lokr_w1", vec![2, 2]), ("lokr_w2_a", vec![4, RANK]), ("lokr_w2_b", vec![RANK, 18])],
        vec![
            ("a1.weight", vec![4, RANK]),
            ("a2.weight", vec![RANK, 4]),
            ("b1.weight", vec![8, 2]),
            ("b2.weight", vec![2, 4, 3, 3]),
        ],
    ];
    let folder = scratch();
    let path = folder.path().join("x.safetensors");
    for parts in kinds {
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (part, shape) in parts {
            let start = end;
            end += 4 * shape.iter().product::<u64>();
            let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
            header.insert(format!("{module}.{part}"), entry);
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(&path, &bytes).expect("a header");
        let file = std::fs::File::options().write(true).open(&path).expect("a file");
        file.set_len(bytes.len() as u64 + end).expect("a hole");
        let error = LoraFile::open(&path).expect_err("a rank").to_string();
        assert!(error.contains("has rank 20000000, above the sides"), "{error}");
    }
}

#[test]
fn what_the_model_lacks_is_left_out_and_named() {
    let fitting =
        pair("unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight", [&[2, 4, 3, 3], &[8, 2, 1, 1]]);
    let lacking = pair("unet.conv_out.lora_A.weight", "unet.conv_out.lora_B.weight", [&[2, 4], &[8, 2]]);
    let misshapen = pair(
        "unet.mid_block.attentions.0.proj_in.lora_A.weight",
        "unet.mid_block.attentions.0.proj_in.lora_B.weight",
        [&[2, 9], &[8, 2]],
    );
    let foreign = pair(
        "transformer.x_embedder.lora_A.weight",
        "transformer.x_embedder.lora_B.weight",
        [&[2, 4], &[8, 2]],
    );
    let bias = [("unet.conv_in.lora_B.bias", Dtype::F16, &[8][..])];
    let tensors: Vec<_> =
        fitting.into_iter().chain(lacking).chain(misshapen).chain(foreign).chain(bias).collect();
    let (_folder, path) = file(&tensors);
    let lora = Lora { file: Arc::new(LoraFile::open(&path).expect("LoRAs")), weight: 1.0 };
    let plan = LoraPlan::new(&[lora], &model()).expect("one that fits");
    assert_eq!(plan.changes(UNET).expect("changes").names().collect::<Vec<_>>(), ["conv_in.weight"]);
    let notice = format!(
        "{}: 5 of its 6 modules do not fit this model and are left out: unet.conv_in, unet.conv_out, \
         unet.mid_block.attentions.0.proj_in and 2 more",
        path.display()
    );
    assert_eq!(plan.notices(), [notice]);
}

#[test]
fn a_dylora_is_named_where_its_trainers_arguments_tell() {
    let folder = scratch();
    let path = folder.path().join("x.safetensors");
    let tensors: Tensors = pair(
        "lora_unet_conv_in.lora_down.weight",
        "lora_unet_conv_in.lora_up.weight",
        [&[2, 4, 3, 3], &[8, 2]],
    )
    .into_iter()
    .map(|(name, dtype, shape)| {
        (name.into(), (dtype, shape.to_vec(), vec![0; shape.iter().product::<usize>() * 2]))
    })
    .collect();
    for (algorithm, n_notices) in [("dylora", 1), ("locon", 0)] {
        let arguments = format!(r#"{{"algo": "{algorithm}"}}"#);
        write_tensors(&path, &tensors, Some([("ss_network_args".to_owned(), arguments)].into()));
        let lora = Lora { file: Arc::new(LoraFile::open(&path).expect("a LoRA")), weight: 1.0 };
        let plan = LoraPlan::new(&[lora], &model()).expect("a LoRA that fits");
        assert_eq!(plan.notices().len(), n_notices);
        assert!(plan.notices().iter().all(|notice| notice.contains("is a DyLoRA")));
    }
}

#[test]
fn every_number_and_float_is_read() {
    let folder = scratch();
    let path = folder.path().join("x.safetensors");
    let name = |part: &str| format!("lora_te_encoder_layers_0_mlp_fc1.{part}");
    let floats = |dtype| match dtype {
        Dtype::F64 => 1.5f64.to_le_bytes().to_vec(),
        Dtype::F32 => 1.5f32.to_le_bytes().to_vec(),
        Dtype::F16 => vec![0x00, 0x3e],
        Dtype::BF16 => vec![0xc0, 0x3f],
        Dtype::F8_E5M2 => vec![0x3e],
        _ => vec![0x3c],
    };
    let numbers = [
        (Dtype::F64, 2f64.to_le_bytes().to_vec()),
        (Dtype::F32, 2f32.to_le_bytes().to_vec()),
        (Dtype::I64, 2i64.to_le_bytes().to_vec()),
        (Dtype::I32, 2i32.to_le_bytes().to_vec()),
        (Dtype::I16, 2i16.to_le_bytes().to_vec()),
        (Dtype::U8, vec![2]),
    ];
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
        for (number, alpha) in &numbers {
            let tensors: Tensors = [
                (name("lora_down.weight"), (dtype, vec![1, 4], floats(dtype).repeat(4))),
                (name("lora_up.weight"), (dtype, vec![6, 1], floats(dtype).repeat(6))),
                (name("alpha"), (*number, vec![], alpha.clone())),
            ]
            .into();
            write_tensors(&path, &tensors, None);
            let lora = Lora { file: Arc::new(LoraFile::open(&path).expect("a LoRA")), weight: 1.0 };
            let plan = LoraPlan::new(&[lora], &model()).expect("a LoRA that fits");
            let mut values = [0.0; 24];
            let changes = plan.changes(TEXT_ENCODER).expect("changes");
            changes.apply("encoder.layers.0.mlp.fc1.weight", &mut values).expect("a change");
            assert_eq!(values, [4.5; 24], "{dtype:?}, {number:?}");
        }
    }
}

#[test]
fn loras_for_other_models_are_said_to_be_so() {
    let (down, up) = (&[2, 4][..], &[6, 2][..]);
    let keys = |module: &str| [format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight")];
    let transformer = keys("transformer.single_transformer_blocks.0.attn.to_q");
    check_refused(
        &pair(&transformer[0], &transformer[1], [down, up]),
        &format!(
            "'{}' is for no component of Stable Diffusion 1.x, 2.x or XL; the file is a LoRA for FLUX",
            transformer[0]
        ),
    );
    check_refused(
        &pair(
            "lora_te2_text_projection.lora_down.weight",
            "lora_te2_text_projection.lora_up.weight",
            [down, up],
        ),
        "module 'lora_te2_text_projection' is for text_encoder_2, which this model does not have; its shapes are those of \
         a LoRA for Stable Diffusion XL",
    );
    let attention = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";
    let [down_key, up_key] = ["down", "up"].map(|part| format!("{attention}.lora_{part}.weight"));
    check_refused(
        &pair(&down_key, &up_key, [&[2, 2048], &[8, 2]]),
        &format!(
            "module '{attention}' has shape [8, 2048], and this model's \
             'mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight' [8, 32]; its shapes are those of a LoRA for \
             Stable Diffusion XL"
        ),
    );
    let unknown = keys("lycoris_x.transformer_blocks.0.attn1.to_q");
    check_refused(
        &pair(&unknown[0], &unknown[1], [down, up]),
        &format!("'{}' is for no component of Stable Diffusion 1.x, 2.x or XL", unknown[0]),
    );
    check_refused(
        &pair("lora_unet_conv_inn.lora_down.weight", "lora_unet_conv_inn.lora_up.weight", [down, up]),
        "module 'lora_unet_conv_inn' matches no weight of this model's unet",
    );
}

#[test]
fn matrices_that_do_not_multiply_are_refused() {
    let (down, up) = ("lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight");
    for (shapes, message) in [
        ([&[2, 4, 3, 3][..], &[8, 3, 1, 1][..]], "multiplies [8, 3, 1, 1] by [2, 4, 3, 3]"),
        ([&[2, 4, 3, 3], &[8, 2, 3, 3]], "multiplies [8, 2, 3, 3] by [2, 4, 3, 3]"),
        ([&[0, 4, 3, 3], &[8, 0, 1, 1]], "multiplies [8, 0, 1, 1] by [0, 4, 3, 3]"),
        ([&[2, 4, 3], &[8, 2]], "multiplies [8, 2] by [2, 4, 3]"),
        ([&[2], &[8, 2]], "multiplies [8, 2] by [2]"),
    ] {
        check_refused(&pair(down, up, shapes), &format!("module 'lora_unet_conv_in' {message}"));
    }
    check_refused(&[(down, Dtype::F16, &[2, 4])], "module 'lora_unet_conv_in' lacks one of its two matrices");
    check_refused(
        &[(down, Dtype::U8, &[2, 4]), (up, Dtype::U8, &[8, 2])],
        &format!("'{down}' is stored as U8; supported: F64, F32, F16, BF16, F8_E4M3, F8_E5M2"),
    );
    let [a, b] = pair(down, up, [&[2, 4, 3, 3], &[8, 2, 1, 1]]);
    check_refused(
        &[a, b, ("lora_unet_conv_in.alpha", Dtype::F32, &[2])],
        "'lora_unet_conv_in.alpha' has shape [2], not one number",
    );
}

#[test]
fn a_weight_is_changed_by_one_module() {
    let [a, b] =
        pair("unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight", [&[2, 4, 3, 3], &[8, 2, 1, 1]]);
    let [c, d] = pair(
        "lora_unet_conv_in.lora_down.weight",
        "lora_unet_conv_in.lora_up.weight",
        [&[2, 4, 3, 3], &[8, 2, 1, 1]],
    );
    check_refused(&[a, b, c, d], "modules 'lora_unet_conv_in' and 'unet.conv_in' both change 'conv_in.weight'");
    let [e, f] = pair(
        "lora_unet_input_blocks_0_0.lora_down.weight",
        "lora_unet_input_blocks_0_0.lora_up.weight",
        [&[2, 4, 3, 3], &[8, 2, 1, 1]],
    );
    check_refused(
        &[c, d, e, f],
        "mixes the names of the original layout ('lora_unet_input_blocks_0_0') with diffusers' ('lora_unet_conv_in')",
    );
}

#[test]
fn files_that_hold_no_lora_are_refused() {
    check_refused(&[("conv_in.weight", Dtype::F32, &[8, 4, 3, 3])], "'conv_in.weight' is not part of a LoRA");
    check_refused(&[], "holds no LoRA");
    let folder = scratch();
    for (bytes, message) in [
        (&b"short"[..], "has 5 bytes, too few for a safetensors header"),
        (
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, b'{'],
            "says that its header has 9223372036854775807 bytes; the file has 9",
        ),
        (&[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}', 1], "says that it holds 0 bytes of weights; the file has 1"),
    ] {
        let path = folder.path().join("bad.safetensors");
        std::fs::write(&path, bytes).expect("a file");
        let error = LoraFile::open(&path).expect_err("no LoRA").to_string();
        assert_eq!(error, format!("{}: {message}", path.display()));
    }
    let pickle = folder.path().join("x.pt");
    std::fs::write(&pickle, "").expect("a file");
    let error = LoraFile::open(pickle).expect_err("a pickle").to_string();
    assert!(error.contains("pickled weights can run code"), "{error}");
}

#[test]
fn numbers_that_are_none_are_refused() {
    let folder = scratch();
    let path = folder.path().join("x.safetensors");
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let module = "lora_te_encoder_layers_0_mlp_fc1";
    let tensors: Tensors = [
        (format!("{module}.lora_down.weight"), (Dtype::F32, vec![1, 4], floats(&[0.0, f32::NAN, 0.0, 0.0]))),
        (format!("{module}.lora_up.weight"), (Dtype::F32, vec![6, 1], floats(&[1.0; 6]))),
    ]
    .into();
    write_tensors(&path, &tensors, None);
    let lora = Lora { file: Arc::new(LoraFile::open(&path).expect("shapes that fit")), weight: 1.0 };
    let plan = LoraPlan::new(std::slice::from_ref(&lora), &model()).expect("a plan");
    let changes = plan.changes(TEXT_ENCODER).expect("changes");
    let error = changes.apply("encoder.layers.0.mlp.fc1.weight", &mut [0.0; 24]).expect_err("NaN").to_string();
    assert_eq!(error, format!("{}: '{module}.lora_down.weight' holds NaN", path.display()));
    let error = LoraPlan::new(&[Lora { weight: f32::INFINITY, ..lora }], &model()).expect_err("infinity");
    assert_eq!(error.to_string(), format!("{}: weight inf is not a finite number", path.display()));
}

fn pieces() -> impl Strategy<Value = String> {
    let words = [
        "lora_unet_",
        "lora_te_",
        "lora_te1_",
        "lora_te2_",
        "unet.",
        "text_encoder.",
        "text_encoder_2.",
        "conv_in",
        "input_blocks_0_0",
        "mid_block.attentions.0.proj_in",
        "mid_block_attentions_0_proj_in",
        "text_model_",
        "text_model.",
        "encoder.layers.0.mlp.fc1",
        "encoder_layers_0_mlp_fc1",
        "transformer.",
        ".processor.",
        "to_q",
        "_lora",
        ".",
        "0",
        "é",
        "",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..4).prop_map(|words| words.concat())
}

fn suffixes() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        (".lora_down.weight", ".lora_up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".weight", ".bias"),
    ])
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop::sample::select(vec![0, 1, 2, 3, 4, 6, 8]), 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a file's keys and shapes, it is refused or changes weights of the model that have its shapes.
    #[test]
    fn any_file_is_resolved_or_refused(
        modules in prop::collection::vec((pieces(), suffixes(), shapes(), shapes(), any::<bool>()), 0..3)
    ) {
        let mut tensors = Tensors::new();
        for (module, (down, up), a, b, has_alpha) in &modules {
            for (suffix, shape) in [(down, a), (up, b)] {
                let bytes = vec![0x3c; shape.iter().product::<usize>() * 2];
                tensors.insert(format!("{module}{suffix}"), (Dtype::F16, shape.clone(), bytes));
            }
            if *has_alpha {
                tensors.insert(format!("{module}.alpha"), (Dtype::F16, vec![], vec![0, 0x3c]));
            }
        }
        let folder = scratch();
        let path = folder.path().join("x.safetensors");
        write_tensors(&path, &tensors, None);
        let Ok(file) = LoraFile::open(&path) else { return Ok(()) };
        let n_modules = file.modules().len();
        prop_assert!(n_modules > 0);
        let Ok(plan) = LoraPlan::new(&[Lora { file: Arc::new(file), weight: 1.0 }], &model()) else { return Ok(()) };
        let mut n_changed = 0;
        for (role, name, n) in [
            (UNET, "conv_in.weight", 8 * 4 * 9),
            (UNET, "mid_block.attentions.0.proj_in.weight", 48),
            (TEXT_ENCODER, "encoder.layers.0.mlp.fc1.weight", 24),
        ] {
            let Some(changes) = plan.changes(role).filter(|changes| changes.contains(name)) else { continue };
            let mut values = vec![0.0; n];
            changes.apply(name, &mut values).expect("a change of the weight's shape");
            prop_assert!(values.iter().all(|value| *value > 0.0));
            n_changed += 1;
        }
        prop_assert_eq!(n_changed, n_modules);
    }
}
