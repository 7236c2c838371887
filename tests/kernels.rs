//! Pictures by kiln's kernels beside those by ONNX Runtime's operators.

use crate::cli::{fail, kiln, pixels, psnr, succeed};
use crate::fixtures::scratch;
use crate::support::references;

/// Instructions that some processors have; those that this one lacks are refused.
const INSTRUCTIONS: [&str; 6] = ["portable", "avx2", "avx512", "avx512-vnni", "avx512-bf16", "amx"];

#[test]
fn kernels_draw_what_operators_of_onnx_runtime_draw() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let draw = |kernels: &str, out: &str| {
        let arguments =
            ["generate", "--model", &shapes, "a red circle", "--seed", "7", "--steps", "10", "--out", out];
        let mut command = kiln(&arguments, work.path());
        command.env("KILN_KERNELS", kernels);
        command
    };
    succeed(&mut draw("off", "off.png"));
    let expected = pixels(&work.path().join("off.png"));
    let mut n_drawn = 0;
    for name in INSTRUCTIONS {
        let output = draw(name, "own.png").output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("KILN_KERNELS: ") {
            continue;
        }
        assert!(output.status.success(), "{name}: {said}");
        let found = pixels(&work.path().join("own.png"));
        let differences = || expected.iter().zip(&found).map(|(a, b)| a.abs_diff(*b));
        assert!(differences().max() <= Some(1), "{name}: {:?}", differences().max());
        // Sums in another order round some channels to the neighbouring level, but few.
        let n_other = differences().filter(|difference| *difference > 0).count();
        assert!(n_other * 1000 < expected.len(), "{name}: {n_other}");
        n_drawn += 1;
    }
    assert!(n_drawn >= 1);
}

#[test]
fn names_of_no_kernels_are_refused_with_those_that_there_are() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let mut command = kiln(&["generate", "--model", &shapes, "x", "--steps", "1"], work.path());
    fail(command.env("KILN_KERNELS", "sse9"), 2, "KILN_KERNELS: 'sse9' is not off, auto or one of portable");
}

#[test]
fn products_of_bf16_halve_the_bundle_and_keep_the_picture_on_every_processor() {
    reduced_products_keep_the_picture("bf16", 45.0);
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let cuda = ["compile", &shapes, "--precision", "bf16", "--target", "cuda"];
    fail(&mut kiln(&cuda, work.path()), 2, "precision: ONNX Runtime's CUDA provider has no kernels of bf16");
}

#[test]
fn products_of_int8_keep_the_picture_on_every_processor() {
    reduced_products_keep_the_picture("int8", 40.0);
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    for target in ["cuda", "tensorrt-rtx"] {
        let elsewhere = ["compile", &shapes, "--precision", "int8", "--target", target];
        let reason = "precision: int8 is computed by kiln's kernels for the target cpu";
        fail(&mut kiln(&elsewhere, work.path()), 2, reason);
    }
    // What runs once a picture is of bf16, as are all but the layers that are named.
    let compile = ["compile", &shapes, "--precision", "int8", "--no-reference"];
    let output = kiln(&compile, work.path()).env("KILN_KERNELS", "avx2").output().expect("kiln runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("KILN_KERNELS: ")
            || (said.contains("no faster on this processor") && said.contains("is not measured")),
        "{said}"
    );
    let bundle = succeed(&mut kiln(&compile, work.path())).trim().to_owned();
    let about: serde_json::Value =
        serde_json::from_str(&succeed(&mut kiln(&["inspect", &bundle, "--json"], work.path()))).expect("JSON");
    let precision = |name: &str| about["manifest"]["components"][name]["precision"].clone();
    assert_eq!(
        [precision("unet"), precision("text_encoder"), precision("vae_decoder")],
        ["int8", "bf16", "bf16"]
    );
    // Where the processor has no such products, they are those of bf16's bundle, to the bit.
    let compile = ["compile", &shapes, "--precision", "bf16", "--no-reference", "--no-accuracy"];
    let in_bf16 = succeed(&mut kiln(&compile, work.path())).trim().to_owned();
    for (kernels, has_int8) in [("off", false), ("avx2", false), ("avx512-vnni", true), ("amx", true)] {
        let drawn = [&bundle, &in_bf16].map(|bundle| {
            let draw = [
                "generate",
                "a red circle",
                "--model",
                bundle,
                "--seed",
                "7",
                "--steps",
                "4",
                "--out",
                "x.png",
            ];
            let output = kiln(&draw, work.path()).env("KILN_KERNELS", kernels).output().expect("kiln runs");
            output.status.success().then(|| pixels(&work.path().join("x.png")))
        });
        assert!(drawn[0].is_none() || (drawn[0] != drawn[1]) == has_int8, "{kernels}");
    }
    let bench = ["bench", "operators", &bundle, "--steps", "1", "--json"];
    let output = kiln(&bench, work.path()).env("KILN_KERNELS", "avx512-vnni").output().expect("kiln runs");
    if output.status.success() {
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let operators = said["components"]["unet"].as_array().expect("operators");
        let of = |name: &str| operators.iter().find(|of| of["operator"] == name).cloned();
        assert!(of("LinearInt8").expect("layers")["flop"].as_f64() > Some(0.0), "{operators:?}");
    }
}

fn reduced_products_keep_the_picture(precision: &str, least_psnr: f64) {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let [(exact, _), (rounded, said)] = ["f32", precision].map(|precision| {
        let mut compile = kiln(&["compile", &shapes, "--precision", precision], work.path());
        let output = compile.output().expect("kiln runs");
        let [bundle, said] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        assert!(output.status.success(), "{said}");
        (bundle.trim().to_owned(), said)
    });
    let weights = |bundle: &str| -> u64 {
        let file = std::path::Path::new(bundle).join("unet.data");
        std::fs::metadata(file).expect("weights").len()
    };
    assert!(weights(&rounded) < weights(&exact) * 51 / 100);
    let about = succeed(&mut kiln(&["inspect", &rounded], work.path()));
    assert!(about.contains(&format!("operators, {precision})")), "{about}");
    // Processors without such products compute more exactly than others will.
    let is_measured = !said.contains("is not measured");
    assert!(is_measured || precision == "int8", "{said}");
    let says = about.contains("beside f32: text_encoder ") && about.contains("(64x64, 10 steps)");
    assert_eq!(says, is_measured, "{about}");
    assert!(!succeed(&mut kiln(&["inspect", &exact], work.path())).contains("beside f32"));
    let draw = |bundle: &str, kernels: &str, extra: &[&str]| {
        let arguments = ["generate", "--model", bundle, "a red circle", "--seed", "7", "--steps", "10"];
        let mut command = kiln(&[&arguments[..], &["--out", "made.png"], extra].concat(), work.path());
        let output = command.env("KILN_KERNELS", kernels).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let is_lacking = said.contains("KILN_KERNELS: ");
        assert!(output.status.success() || is_lacking, "{kernels}: {said}");
        (!is_lacking).then(|| pixels(&work.path().join("made.png")))
    };
    let expected = draw(&exact, "auto", &[]).expect("a picture");
    for kernels in [&["off", "auto"], &INSTRUCTIONS[..]].concat() {
        let Some(found) = draw(&rounded, kernels, &[]) else { continue };
        let psnr = psnr(&expected, &found);
        assert!(psnr > least_psnr && found != expected, "{kernels}: {psnr} dB");
        let mut verify = kiln(&["verify", &rounded], work.path());
        succeed(verify.env("KILN_KERNELS", kernels));
    }
    succeed(&mut kiln(&["verify", &rounded, "--against", &exact], work.path()));
    let resident = draw(&rounded, "auto", &["--offload", "none", "--weights", "mapped"]);
    assert!(resident == draw(&rounded, "auto", &["--offload", "sequential"]), "offload changes no bit");
    let rten = kiln(&["generate", "--model", &rounded, "x", "--backend", "rten"], work.path());
    fail(&mut { rten }, 3, "rten reads no weights in bf16");
}

/// The accuracy in a bundle's manifest, where there is one.
fn accuracy(bundle: &str, work: &std::path::Path) -> serde_json::Value {
    let about = succeed(&mut kiln(&["inspect", bundle, "--json"], work));
    let about: serde_json::Value = serde_json::from_str(&about).expect("JSON");
    about["manifest"]["accuracy"].clone()
}

#[test]
fn a_bundle_of_reduced_precision_says_how_far_it_is_from_f32() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let compile = |extra: &[&str]| {
        let arguments = [&["compile", &shapes, "--no-reference"][..], extra].concat();
        succeed(&mut kiln(&arguments, work.path())).trim().to_owned()
    };
    let silent = compile(&["--precision", "bf16", "--no-accuracy"]);
    assert!(accuracy(&silent, work.path()).is_null());
    let rounded = compile(&["--precision", "bf16"]);
    assert_eq!(rounded, silent, "what the cache has is measured when that is asked for");
    let measured = accuracy(&rounded, work.path());
    let [unet, psnr] = [&measured["components"]["unet"], &measured["picture"]["psnr"]]
        .map(|number| number.as_f64().expect("a number"));
    assert!((1e-4..1e-2).contains(&unet) && (40.0..90.0).contains(&psnr), "{measured}");
    // The f32 bundle that it was compared with is not left behind.
    let cache = std::fs::read_dir(std::path::Path::new(&rounded).parent().expect("a cache")).expect("a folder");
    let names = cache.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let left: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    assert_eq!(left.iter().filter(|name| name.starts_with("shapes-")).count(), 1, "{left:?}");

    let manifest = std::path::Path::new(&rounded).join("bundle.yaml");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    let recorded = text.lines().find(|line| line.starts_with("    unet: ")).expect("a drift");
    let yaml = text.rsplit_once("# blake3 ").expect("a digest").0.replace(recorded, "    unet: 1e-7");
    let forged = format!("{yaml}# blake3 {}\n", blake3::hash(yaml.as_bytes()).to_hex());
    std::fs::write(&manifest, forged).expect("a file");
    let exact = compile(&["--precision", "f32"]);
    let verify = ["verify", &rounded, "--against", &exact];
    fail(&mut kiln(&verify, work.path()), 6, "unet: drift ");
}

#[test]
fn precision_auto_is_that_of_the_processor() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    for (kernels, precision) in [("off", "f32"), ("avx512-bf16", "bf16")] {
        let arguments = ["compile", &shapes, "--precision", "auto", "--no-reference", "--no-accuracy"];
        let mut command = kiln(&arguments, work.path());
        let output = command.env("KILN_KERNELS", kernels).output().expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        if kernels != "off" && said.contains("KILN_KERNELS: ") {
            continue;
        }
        assert!(said.contains(&format!("--precision auto: {precision}, ")), "{said}");
        let bundle = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let about = succeed(&mut kiln(&["inspect", &bundle], work.path()));
        assert!(about.contains(&format!("operators, {precision})")), "{about}");
    }
}

#[test]
fn operators_that_take_time_are_told_with_their_work() {
    let work = scratch();
    let shapes = references().join("../../models/shapes").display().to_string();
    let bundle = succeed(&mut kiln(&["compile", &shapes, "--no-reference"], work.path())).trim().to_owned();
    let bench = ["bench", "operators", &bundle, "--steps", "2"];
    let said = succeed(&mut kiln(&[&bench[..], &["--json"]].concat(), work.path()));
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let operators = said["components"]["unet"].as_array().expect("operators");
    // Of the first convolution: 4 channels of 16 x 16 latents to 32, 3 x 3.
    let first = operators
        .iter()
        .find(|found| found["inputs"][0][1] == 4 && found["inputs"][1][2] == 3)
        .expect("a convolution");
    let calls = first["calls"].as_f64().expect("calls");
    let channels = first["inputs"][1][0].as_f64().expect("channels");
    let rows = first["inputs"][0][0].as_f64().expect("rows");
    assert_eq!(first["flop"].as_f64(), Some(calls * rows * channels * 256.0 * 2.0 * 4.0 * 9.0), "{first}");
    assert!(calls >= 2.0 && first["core_seconds"].as_f64() > Some(0.0), "{first}");
    let table = succeed(&mut kiln(&bench, work.path()));
    assert!(table.contains("| operator | calls | share |") && table.contains("vae_decoder: "), "{table}");
    let mut without = kiln(&["bench", "operators", &bundle, "--backend", "rten"], work.path());
    fail(&mut without, 2, "nothing was profiled: operators are measured with ONNX Runtime");
    let mut command = kiln(&["generate", "x", "--model", &bundle, "--steps", "1"], work.path());
    fail(command.env("KILN_PROFILES", "nowhere"), 2, "KILN_PROFILES: nowhere is not a folder");
}
