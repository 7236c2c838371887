//! Tasks, verification and comparison on the command line.

use std::fs;
use std::path::Path;

use kiln_runtime::image::RgbImage;
use serde_json::{Value, json};

use crate::cli::{fail, kiln, picture_settings, succeed};
use crate::families::Family;
use crate::fixtures::{onnxruntime, scratch, tiny};

/// A picture of 40x32 pixels, red on the left and blue on the right.
pub(crate) fn save_picture(path: &Path) {
    let data = (0..40 * 32).flat_map(|i| if i % 40 < 20 { [200, 30, 30] } else { [30, 30, 200] }).collect();
    let picture = RgbImage::from_raw(40, 32, data).expect("a picture");
    picture.save_png(path, &[]).expect("a file");
}

fn size(path: &Path) -> [u32; 2] {
    let picture = RgbImage::open(path).expect("a picture");
    [picture.width(), picture.height()]
}

#[test]
fn pictures_are_made_from_pictures() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    save_picture(&work.path().join("in.png"));
    let draw = |out: &str, extra: &[&str]| {
        let args = ["generate", "a cat", "--model", &model, "--steps", "4", "--seed", "1", "--out", out];
        succeed(&mut kiln(&[&args[..], extra].concat(), work.path()));
        RgbImage::open(work.path().join(out)).expect("a picture")
    };
    let near = draw("near.png", &["--init-image", "in.png", "--strength", "0.25"]);
    assert_eq!(size(&work.path().join("near.png")), [40, 32]);
    let far = draw("far.png", &["--init-image", "in.png", "--strength", "1"]);
    assert_ne!(near, far);
    draw("wide.png", &["--init-image", "in.png", "--width", "64", "--height", "48"]);
    assert_eq!(size(&work.path().join("wide.png")), [64, 48]);
    draw("masked.png", &["--init-image", "in.png", "--mask", "in.png", "--width", "32", "--height", "32"]);
    let light = RgbImage::from_raw(40, 32, [[255; 60], [0; 60]].concat().repeat(32)).expect("a picture");
    light.save_png(work.path().join("left.png"), &[]).expect("a file");
    let filled = |out: &str, fill: &str| {
        draw(out, &["--init-image", "in.png", "--mask", "left.png", "--strength", "0.5", "--mask-fill", fill])
    };
    let fills =
        [("p.png", "picture"), ("n.png", "noise"), ("z.png", "zeros")].map(|(out, fill)| filled(out, fill));
    assert!(fills[0] != fills[1] && fills[1] != fills[2] && fills[0] != fills[2]);
    assert_eq!(picture_settings(&work.path().join("z.png"))["mask_fill"], "zeros");
    draw("large.png", &["--width", "32", "--height", "32", "--hires", "1.5", "--hires-upscaler", "pixels"]);
    assert_eq!(size(&work.path().join("large.png")), [48, 48]);
    let settings = picture_settings(&work.path().join("large.png"));
    for (key, value) in [
        ("width", json!(48)),
        ("first_pass_width", json!(32)),
        ("hires", json!(1.5)),
        ("hires_strength", json!(0.7)),
        ("hires_steps", json!(4)),
        ("hires_upscaler", json!("pixels")),
        ("prompt_syntax", json!("weighted")),
    ] {
        assert_eq!(settings[key], value, "{key}");
    }
    assert_eq!(picture_settings(&work.path().join("wide.png"))["strength"], 0.8);
    let plain = draw("plain.png", &["--width", "32", "--height", "32"]);
    let varied = ["--width", "32", "--height", "32", "--variation-seed", "5", "--variation-strength", "0.2"];
    assert_ne!(draw("varied.png", &varied), plain);

    let refuse = |extra: &[&str], code, message| {
        let args = ["generate", "a cat", "--model", &model, "--steps", "4"];
        drop(fail(&mut kiln(&[&args[..], extra].concat(), work.path()), code, message));
    };
    refuse(&["--mask", "in.png"], 2, "--init-image");
    refuse(&["--init-image", "in.png", "--mask-fill", "noise"], 2, "--mask");
    refuse(&["--init-image", "none.png"], 3, "none.png: no such file");
    refuse(&["--init-image", "in.png", "--strength", "0.1"], 2, "strength: 0.1 leaves none of 4 steps");
    refuse(&["--init-image", "in.png", "--strength", "1.5"], 2, "strength: 1.5 is not a number from 0 to 1");
    refuse(&["--hires", "2", "--hires-strength", "0"], 2, "hires strength: 0 leaves none of 4 steps");
    refuse(&["--out", "a.jpg"], 2, "out: a.jpg does not end in .png, and pictures are PNG files");
    refuse(&["--control-image", "in.png"], 2, "control image: 1 of them for 0 ControlNets");
    refuse(&["--hires", "0.5"], 2, "hires scale: 0.5 is not a number from 1 to 8");
    refuse(&["--clip-skip", "9"], 2, "clip skip: 9 is more than");
    refuse(&["--seed", "1,2", "--batch-size", "3"], 2, "seed: 2 of them for 3 prompts");
    refuse(&["--embedding", "word.pt"], 3, "word.pt: no such file");
    fs::write(work.path().join("word.pt"), "").expect("a file");
    refuse(&["--embedding", "word.pt"], 3, "kiln refuses them");
}

#[test]
fn a_controlnet_comes_with_the_model_or_beside_it() {
    onnxruntime();
    let (family, other, work) = (Family::new("controlnet"), Family::new("taesd"), scratch());
    save_picture(&work.path().join("in.png"));
    let model = family.folder.path().display().to_string();
    let net = family.folder.path().join("controlnet").display().to_string();
    let plain = other.folder.path().display().to_string();
    let args =
        ["generate", "a red circle", "--steps", "2", "--seed", "1", "--control-image", "in.png", "--out"];
    let draw = |out: &str, extra: &[&str]| {
        succeed(&mut kiln(&[&args[..], &[out], extra].concat(), work.path()));
        RgbImage::open(work.path().join(out)).expect("a picture")
    };
    let steered = draw("a.png", &["--model", &model]);
    assert_eq!([steered.width(), steered.height()], [40, 32]);
    assert_ne!(draw("b.png", &["--model", &model, "--control-scale", "0"]), steered);
    let beside = draw("c.png", &["--model", &plain, "--controlnet", &net]);
    assert_eq!(picture_settings(&work.path().join("c.png"))["control_scale"], json!([1.0]));
    assert!(succeed(&mut kiln(&["inspect", &net], work.path())).contains("(ControlNet, ControlNetModel)"));
    let compiled = succeed(&mut kiln(&["compile", &net], work.path()));
    assert_eq!(draw("f.png", &["--model", &plain, "--controlnet", compiled.trim()]), beside);
    fail(&mut kiln(&["compile", &net, "--target", "onnx"], work.path()), 2, "is compiled for the CPU");
    let short = [&args[..], &["d.png", "--model", &model, "--controlnet", &net]].concat();
    fail(&mut kiln(&short, work.path()), 2, "control image: 1 of them for 2 ControlNets");
    let wrong = Family::new("sdxl-controlnet");
    let wrong = wrong.folder.path().join("controlnet").display().to_string();
    let misfit = [&args[..], &["e.png", "--model", &plain, "--controlnet", &wrong]].concat();
    fail(&mut kiln(&misfit, work.path()), 3, "attends to text states of width 72; this model's have 32");
}

#[test]
fn a_bundle_is_verified_against_its_reference() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let without = succeed(&mut kiln(&["compile", &model, "--no-reference"], work.path()));
    fail(&mut kiln(&["verify", without.trim()], work.path()), 3, "has no reference");
    let bundle = succeed(&mut kiln(&["compile", &model], work.path()));
    assert_eq!(bundle, without);
    let verify = |extra: &[&str]| kiln(&[&["verify", bundle.trim()], extra].concat(), work.path());
    assert!(succeed(&mut verify(&[])).starts_with("ok: drift 0.00e0"));
    let rten = succeed(&mut verify(&["--backend", "rten", "--json"]));
    let rten: Value = serde_json::from_str(&rten).expect("JSON");
    assert_eq!(rten["passes"], true);
    assert!(rten["drift"].as_f64().is_some_and(|drift| drift > 0.0 && drift < 1e-4), "{rten}");
    fail(&mut verify(&["--backend", "rten", "--max-drift", "0"]), 6, "drift");
    fail(&mut verify(&["--max-drift", "NaN"]), 2, "expected a number from 0");
    fail(&mut verify(&["--min-psnr", "NaN"]), 2, "expected a number from 0");
    decoder_drifts(Path::new(bundle.trim()));
    fail(&mut verify(&[]), 6, "the picture's PSNR of");

    let weights = Path::new(bundle.trim()).join("unet.data");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, &bytes).expect("spoilt");
    fail(&mut verify(&[]), 3, "content does not match the digest");
}

/// Doubles every weight of the decoder's last convolution, and corrects the digest in the manifest.
fn decoder_drifts(bundle: &Path) {
    let path = bundle.join("vae_decoder.data");
    let mut bytes = fs::read(&path).expect("weights");
    let digest = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("weights");
        kiln_bundle::fs::digest(&path).expect("a digest")
    };
    let before = digest(&bytes);
    let places = {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let data = tensors.tensor("decoder.conv_out.weight").expect("the weight").data();
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + data.len()
    };
    for value in bytes[places].as_chunks_mut::<4>().0 {
        *value = (2.0 * f32::from_le_bytes(*value)).to_le_bytes();
    }
    let after = digest(&bytes);
    let manifest = bundle.join("bundle.yaml");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    let (yaml, _) = text.rsplit_once("# blake3 ").expect("the manifest's own digest");
    let yaml = yaml.replace(&before, &after);
    let own = blake3::hash(yaml.as_bytes()).to_hex();
    fs::write(&manifest, format!("{yaml}# blake3 {own}\n")).expect("a manifest");
}

#[test]
fn pictures_are_compared() {
    let work = scratch();
    save_picture(&work.path().join("a.png"));
    let b = RgbImage::open(work.path().join("a.png")).expect("a picture");
    let mut data = b.data().to_vec();
    data[0] -= 10;
    let b = RgbImage::from_raw(40, 32, data).expect("a picture");
    b.save_png(work.path().join("b.png"), &[]).expect("a file");
    let compare = |extra: &[&str]| kiln(&[&["compare", "a.png", "b.png"], extra].concat(), work.path());
    let said = succeed(&mut compare(&["--diff", "d.png", "--max-difference", "10", "--min-ssim", "0.9"]));
    assert!(said.contains("max 10/255") && said.contains("differences times 25: d.png"), "{said}");
    assert_eq!(RgbImage::open(work.path().join("d.png")).expect("a picture").data()[..3], [250, 0, 0]);
    let json: Value = serde_json::from_str(&succeed(&mut compare(&["--json"]))).expect("JSON");
    assert_eq!((&json["max_difference"], &json["passes"]), (&10.into(), &true.into()));
    fail(&mut compare(&["--max-difference", "9"]), 6, "a difference of 10 is over 9");
    fail(&mut compare(&["--min-psnr", "90"]), 6, "is under 90");
    fail(&mut compare(&["--min-ssim", "1"]), 6, "is under 1");
    fail(&mut compare(&["--min-ssim", "1.5"]), 2, "expected a number from 0 to 1");
    fail(&mut compare(&["--min-psnr", "NaN"]), 2, "expected a number from 0");
    b.resized(kiln_runtime::Size::square(20)).save_png(work.path().join("b.png"), &[]).expect("a file");
    fail(&mut compare(&[]), 3, "a picture of 40x32 pixels cannot be compared with one of 20x20");
}

#[test]
fn a_mask_that_is_the_same_all_over_is_reported() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    save_picture(&work.path().join("in.png"));
    let save = |name: &str, pixel: fn(usize) -> [u8; 4]| {
        let mut file = fs::File::create(work.path().join(name)).expect("a file");
        let mut encoder = png::Encoder::new(&mut file, 32, 32);
        encoder.set_color(png::ColorType::Rgba);
        let data: Vec<u8> = (0..32 * 32).flat_map(pixel).collect();
        encoder.write_header().and_then(|mut writer| writer.write_image_data(&data)).expect("a PNG");
    };
    save("shape.png", |i| if i % 32 < 16 { [255; 4] } else { [0, 0, 0, 255] });
    save("alpha.png", |i| [255, 255, 255, if i % 32 < 16 { 255 } else { 0 }]);
    save("white.png", |_| [255; 4]);
    save("ones.png", |i| if i % 32 < 16 { [1, 1, 1, 255] } else { [0, 0, 0, 255] });
    let said = |mask: &str| {
        let args = ["generate", "x", "--model", &model, "--steps", "2", "--seed", "1", "--out", "o.png"];
        let task = ["--init-image", "in.png", "--mask", mask, "--width", "32", "--height", "32"];
        let output = kiln(&[&args[..], &task].concat(), work.path()).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    assert_eq!(said("shape.png"), "");
    assert_eq!(said("ones.png"), "the mask is dark all over: nothing is painted\n");
    let white = "the mask is light all over: all is painted, and nothing of the picture is kept";
    assert_eq!(said("white.png"), format!("{white}\n"));
    assert_eq!(said("alpha.png"), format!("{white}; its alpha channel, which varies, is not read\n"));
}
