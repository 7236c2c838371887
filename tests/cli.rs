//! The `kiln` command as a user calls it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::fixtures::{onnxruntime, scratch, tiny};

pub(crate) fn kiln(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir(folder).env("KILN_ENGINE_CACHE", folder.join("engines"));
    command
}

#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("kiln runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command that must fail with this code and message.
#[track_caller]
pub(crate) fn fail(command: &mut Command, code: i32, message: &str) -> Output {
    let output = command.output().expect("kiln runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    output
}

#[track_caller]
pub(crate) fn text_chunks(path: &Path) -> Vec<(String, String)> {
    let file = std::io::BufReader::new(fs::File::open(path).expect("a picture"));
    let reader = png::Decoder::new(file).read_info().expect("a PNG");
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().expect("text")));
    latin.chain(utf8).collect()
}

#[test]
fn generate_writes_pictures_that_say_how_they_were_made() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args =
        ["generate", "ein Fuß 東", "--model", &model, "--steps", "2", "--seed", "3", "--batch-size", "2"];
    let args = [&args[..], &["--negative-prompt", "blurry", "--width", "24", "--height", "40"]].concat();
    let printed = succeed(&mut kiln(&[&args[..], &["--out", "a.png"]].concat(), work.path()));
    assert_eq!(printed, "a-0.png\na-1.png\n");
    let chunks = text_chunks(&work.path().join("a-1.png"));
    for (key, value) in [
        ("prompt", "ein Fuß 東"),
        ("negative_prompt", "blurry"),
        ("seed", "3"),
        ("steps", "2"),
        ("guidance_scale", "7.5"),
        ("width", "24"),
        ("height", "40"),
        ("batch_index", "1"),
    ] {
        assert!(chunks.contains(&(key.into(), value.into())), "{key}: {chunks:?}");
    }

    let json = succeed(&mut kiln(&[&args[..], &["--out", "b.png", "--json"]].concat(), work.path()));
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["images"][1], "b-1.png");
    assert_eq!(json["seed"], 3);
    let read = |name: &str| fs::read(work.path().join(name)).expect("a picture");
    assert!(read("a-0.png") == read("b-0.png"));
    assert!(read("a-0.png") != read("a-1.png"));
    let leftovers = fs::read_dir(work.path()).expect("a folder").count();
    assert_eq!(leftovers, 5, "four pictures and the engines");
}

#[test]
fn the_second_run_finds_the_bundle_and_a_damaged_one_is_made_again() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let compile = || {
        let json = succeed(&mut kiln(&["compile", &model, "--json"], work.path()));
        serde_json::from_str::<Value>(&json).expect("JSON")
    };
    let first = compile();
    assert_eq!(first["cached"], false);
    assert_eq!(compile()["cached"], true);
    let bundle = first["bundle"].as_str().expect("a path");
    let weights = Path::new(bundle).join("unet.data");
    let mut bytes = fs::read(&weights).expect("weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, &bytes).expect("spoilt");
    fail(&mut kiln(&["inspect", bundle, "--verify"], work.path()), 3, "content does not match the digest");
    assert_eq!(compile()["cached"], false);
    succeed(&mut kiln(&["inspect", bundle, "--verify"], work.path()));
}

#[test]
fn both_backends_draw_the_same_picture_and_bundles_are_models_too() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let bundle = succeed(&mut kiln(&["compile", &model.path().display().to_string()], work.path()));
    let draw = |backend: &str| {
        let out = format!("{backend}.png");
        let args = ["generate", "a cat", "--model", bundle.trim(), "--steps", "2", "--seed", "1"];
        succeed(&mut kiln(&[&args[..], &["--backend", backend, "--out", &out]].concat(), work.path()));
        let decoder =
            png::Decoder::new(std::io::BufReader::new(fs::File::open(work.path().join(&out)).expect("a file")));
        let mut reader = decoder.read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        pixels
    };
    let (first, second) = (draw("onnxruntime"), draw("rten"));
    assert!(first.iter().zip(&second).all(|(a, b)| a.abs_diff(*b) <= 2));
}

#[test]
fn where_onnx_runtime_can_not_be_had_the_built_in_backend_takes_over_and_says_so() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["generate", "a cat", "--model", &model, "--steps", "1", "--out", "a.png"];
    let mut command = kiln(&args, work.path());
    command.env("KILN_CACHE_DIR", work.path().join("cache")).env("PATH", "").env_remove("KILN_ONNXRUNTIME");
    let output = command.output().expect("kiln runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("using the built-in backend rten: pip: is not installed"), "{stderr}");
    assert!(work.path().join("a.png").exists());
}

#[test]
fn a_library_that_was_named_and_is_none_is_an_error() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["generate", "a cat", "--model", &model, "--steps", "1"];
    let with = |value: &Path| {
        let mut command = kiln(&args, work.path());
        command.env("KILN_ONNXRUNTIME", value);
        command
    };
    fail(&mut with(&work.path().join("absent.so")), 4, "absent.so: no such file");
    fail(&mut with(work.path()), 4, "holds no libonnxruntime");
    let text = work.path().join("text.so");
    fs::write(&text, "no library, only a text").expect("a file");
    fail(&mut with(&text), 4, "text.so: is not a shared library for this machine");
    #[cfg(target_os = "linux")]
    {
        let other = Path::new("/proc/self/exe");
        let copy = work.path().join("other.so");
        fs::copy(other, &copy).expect("a copy");
        fail(&mut with(&copy), 4, "other.so");
    }
}

#[test]
fn wrong_requests_fail_before_anything_is_compiled() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let check = |extra: &[&str], message: &str| {
        let args = [&["generate", "a cat", "--model", &model], extra].concat();
        fail(&mut kiln(&args, work.path()), 2, message);
        assert!(!work.path().join("engines").exists(), "{extra:?}");
    };
    check(&["--steps", "0"], "error: steps: 0 is not a positive number");
    check(&["--guidance-scale", "nan"], "error: guidance scale: NaN is not a finite number");
    check(&["--width", "63"], "error: width: 63 is not a multiple of 8 up to 8192");
    check(&["--height", "99999999"], "error: height: 99999999 is not a multiple of 8");
    check(&["--eta", "2"], "error: eta: 2 is not a number from 0 to 1");
    check(&["--batch-size", "0"], "error: batch size: 0 is not a number from 1 to 256");
    check(&["--threads", "0"], "error: threads: 0 is not a positive number");
    check(&["--steps", "many"], "invalid value 'many'");
    check(&["--attention", "sliced:0"], "is not a positive number of heads");
}

#[test]
fn missing_and_broken_models_are_named() {
    let work = scratch();
    let check = |model: &str, message: &str| {
        fail(&mut kiln(&["generate", "a cat", "--model", model], work.path()), 3, message);
    };
    check("nowhere", "error: nowhere: no such folder");
    fs::create_dir(work.path().join("empty")).expect("a folder");
    check("empty", "error: empty: has no model_index.json");
    fs::create_dir(work.path().join("broken")).expect("a folder");
    fs::write(work.path().join("broken/bundle.yaml"), "format: 1\nname: [").expect("a file");
    check("broken", "broken/bundle.yaml: ");
    fs::write(work.path().join("broken/bundle.yaml"), "format: 1\nsurprise: 2").expect("a file");
    check("broken", "unknown field `surprise`");
    fail(&mut kiln(&["inspect", "nowhere"], work.path()), 3, "error: nowhere: no such file or folder");
    fs::write(work.path().join("text.onnx"), "no model").expect("a file");
    fail(&mut kiln(&["inspect", "text.onnx"], work.path()), 3, "text.onnx: is not an ONNX model");
    let outside = tempfile::tempdir().expect("a folder outside any checkout");
    fail(&mut kiln(&["generate", "a cat"], outside.path()), 2, "no --model given");
}

#[cfg(unix)]
#[test]
fn a_cache_that_can_not_be_written_is_an_error_unless_the_bundle_is_there() {
    use std::os::unix::fs::PermissionsExt;
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let file = work.path().join("file");
    fs::write(&file, "not a folder").expect("a file");
    let below = file.join("engines").display().to_string();
    fail(&mut kiln(&["compile", &model, "--engine-cache", &below], work.path()), 5, "not a directory");

    succeed(&mut kiln(&["compile", &model], work.path()));
    let engines = work.path().join("engines");
    fs::set_permissions(&engines, fs::Permissions::from_mode(0o555)).expect("read-only");
    let json = succeed(&mut kiln(&["compile", &model, "--json"], work.path()));
    fs::set_permissions(&engines, fs::Permissions::from_mode(0o755)).expect("writable");
    assert!(json.contains(r#""cached":true"#), "{json}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let script = format!(
        "ulimit -f 100; trap '' XFSZ; exec {} compile {model} --engine-cache engines",
        env!("CARGO_BIN_EXE_kiln")
    );
    let output =
        Command::new("bash").args(["-c", &script]).current_dir(work.path()).output().expect("bash runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("file too large"), "{stderr}");
    let left: Vec<String> = fs::read_dir(work.path().join("engines"))
        .expect("the cache")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn trace_and_synth_never_overwrite() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let printed = succeed(&mut kiln(&["trace", &model, "--out", "onnx", "--precision", "f16"], work.path()));
    assert_eq!(printed.lines().count(), 4, "{printed}");
    assert!(printed.contains("onnx/unet.onnx ("), "{printed}");
    fail(&mut kiln(&["trace", &model, "--out", "onnx"], work.path()), 2, "onnx: exists and is not empty");
    fail(&mut kiln(&["synth", "tiny", "--out", "onnx"], work.path()), 3, "onnx: exists and is not empty");
    let summary = succeed(&mut kiln(&["inspect", "onnx/unet.onnx", "--json"], work.path()));
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["model"]["opsets"]["ai.onnx"], 23);
    assert_eq!(summary["model"]["operators"]["Attention"], 8);
}

#[test]
fn inspect_describes_checkpoints_and_bundles() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let text = succeed(&mut kiln(&["inspect", &model], work.path()));
    assert!(text.contains("unet") && text.contains("f16"), "{text}");
    let json: Value =
        serde_json::from_str(&succeed(&mut kiln(&["inspect", &model, "--json"], work.path()))).expect("JSON");
    assert_eq!(json["kind"], "checkpoint");
    let bundle = succeed(&mut kiln(&["compile", &model], work.path()));
    let text = succeed(&mut kiln(&["inspect", bundle.trim()], work.path()));
    assert!(text.contains("in  sample f32 [batch, 4, height, width]"), "{text}");
}

#[test]
fn a_fixed_size_engine_refuses_other_sizes() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["compile", &model, "--width", "32", "--height", "32"];
    let bundle = succeed(&mut kiln(&args, work.path()));
    let generate = ["generate", "a cat", "--model", bundle.trim(), "--steps", "1", "--out", "a.png"];
    succeed(&mut kiln(&[&generate[..], &["--width", "32", "--height", "32"]].concat(), work.path()));
    let other = [&generate[..], &["--width", "40", "--height", "32"]].concat();
    fail(&mut kiln(&other, work.path()), 1, "input 'sample' (f32 [2, 4, 16, 16]) got f32 [2, 4, 16, 20]");
}
