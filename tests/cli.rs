//! The `kiln` command as a user calls it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::fixtures::{onnxruntime, scratch, tiny};

/// The command with its engine cache in the folder; compiled bundles are not measured, which takes seconds for some.
pub(crate) fn kiln(args: &[&str], folder: &Path) -> Command {
    let mut command = measuring_kiln(args, folder);
    if args.first() == Some(&"compile") {
        command.arg("--no-figures");
    }
    command
}

/// The command with its engine cache in the folder.
pub(crate) fn measuring_kiln(args: &[&str], folder: &Path) -> Command {
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

/// The text of a chunk.
#[track_caller]
pub(crate) fn text_chunk(path: &Path, keyword: &str) -> String {
    let mut chunks = text_chunks(path).into_iter();
    chunks.find(|(key, _)| key == keyword).map(|(_, text)| text).expect(keyword)
}

/// How kiln says that a picture was made.
#[track_caller]
pub(crate) fn picture_settings(path: &Path) -> Value {
    serde_json::from_str(&text_chunk(path, "kiln")).expect("JSON")
}

#[track_caller]
pub(crate) fn pixels(path: &Path) -> Vec<u8> {
    let file = std::io::BufReader::new(fs::File::open(path).expect("a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut pixels).expect("pixels");
    pixels
}

/// How much noise there is beside a picture, in decibels.
pub(crate) fn psnr(expected: &[u8], found: &[u8]) -> f64 {
    let squares = expected.iter().zip(found).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    10.0 * (255.0 * 255.0 * expected.len() as f64 / squares.sum::<f64>().max(1e-9)).log10()
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
    let settings = picture_settings(&work.path().join("a-1.png"));
    for (key, value) in [
        ("prompt", json!("ein Fuß 東")),
        ("negative_prompt", json!("blurry")),
        ("seed", json!(3)),
        ("steps", json!(2)),
        ("guidance_scale", json!(7.5)),
        ("width", json!(24)),
        ("height", json!(40)),
        ("batch_index", json!(1)),
    ] {
        assert_eq!(settings[key], value, "{key}");
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
        serde_json::from_str::<Value>(&json).expect("JSON")["bundles"][0].take()
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
fn schedulers_and_generators_are_chosen_by_name_and_draw_different_pictures() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let draw = |name: &str, extra: &[&str]| {
        let args = ["generate", "a cat", "--model", &model, "--steps", "3", "--seed", "1", "--out", name];
        succeed(&mut kiln(&[&args[..], extra].concat(), work.path()));
        pixels(&work.path().join(name))
    };
    let pictures = [
        draw("ddim.png", &[]),
        draw("euler.png", &["--scheduler", "euler-a"]),
        draw("dpm.png", &["--scheduler", "dpm++2m:karras"]),
        draw("cuda.png", &["--generator", "cuda"]),
    ];
    assert!((0..4).all(|i| (0..i).all(|j| pictures[i] != pictures[j])));
    let said = |name: &str, key: &str, value: &str| {
        assert_eq!(picture_settings(&work.path().join(name))[key], value, "{name}");
    };
    said("ddim.png", "scheduler", "DDIMScheduler");
    said("dpm.png", "scheduler", "dpm++2m:karras");
    said("ddim.png", "generator", "cpu");
    said("cuda.png", "generator", "cuda");
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
        pixels(&work.path().join(&out))
    };
    let (first, second) = (draw("onnxruntime"), draw("rten"));
    assert!(first.iter().zip(&second).all(|(a, b)| a.abs_diff(*b) <= 2));
}

#[test]
fn where_onnx_runtime_cannot_be_had_the_built_in_backend_takes_over_and_says_so() {
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
    check(&["--scheduler", "euler-b"], "error: scheduler: 'euler-b' is not supported; supported: ddim, ddpm");
    check(
        &["--scheduler", "ddim:karras"],
        "error: scheduler: 'ddim:karras': DDIMScheduler has no choice of sigmas",
    );
    check(&["--generator", "tpu"], "invalid value 'tpu'");
    check(&["--batch-size", "0"], "error: batch size: 0 is not a number from 1 to 256");
    check(&["--threads", "0"], "error: threads: 0 is not a number from 1 to 1024");
    check(&["--threads", "1025"], "error: threads: 1025 is not a number from 1 to 1024");
    check(&["--steps", "many"], "invalid value 'many'");
    check(
        &["--attention", "sliced:0"],
        "'sliced:0' is not fused, plain, sliced:auto, sliced:max or sliced:N heads",
    );
}

#[test]
fn help_lists_exit_codes_and_variables() {
    let work = scratch();
    let help = succeed(&mut kiln(&["--help"], work.path()));
    let numbered = |code: u8| help.lines().any(|line| line.starts_with(&format!("  {code}  ")));
    assert!((0..=7).all(numbered), "{help}");
    let names =
        ["KILN_CACHE_DIR", "KILN_ENGINE_CACHE", "KILN_ENGINE_CACHE_LIMIT", "KILN_ONNXRUNTIME", "KILN_LOG"];
    for name in names {
        assert!(help.lines().any(|line| line.starts_with(&format!("  {name} "))), "{name}: {help}");
    }
}

#[test]
fn another_process_answers_with_its_failure_as_data() {
    let work = scratch();
    let job = work.path().join("job.json");
    let execution = r#"{ "backend": "rten", "threads": null, "device": "auto" }"#;
    fs::write(&job, format!(r#"{{ "bundle": "nowhere", "execution": {execution} }}"#)).expect("a job");
    let mut worker = kiln(&["work", "measure"], work.path());
    let answer = succeed(worker.stdin(fs::File::open(&job).expect("a job")));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["Err"]["message"], "nowhere: is not a bundle");
    assert_eq!(answer["Err"]["exit"], "Input");
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
    fs::write(work.path().join("broken/bundle.yaml"), "format: 1\nname: x").expect("a file");
    check("broken", "is of format 1");
    fs::write(work.path().join("broken/bundle.yaml"), "format: 5\nsurprise: 2").expect("a file");
    check("broken", "unknown field `surprise`");
    fail(&mut kiln(&["inspect", "nowhere"], work.path()), 3, "error: nowhere: no such file or folder");
    fs::write(work.path().join("text.onnx"), "no model").expect("a file");
    fail(&mut kiln(&["inspect", "text.onnx"], work.path()), 3, "text.onnx: is not an ONNX model");
    let outside = tempfile::tempdir().expect("a folder outside any checkout");
    fail(&mut kiln(&["generate", "a cat"], outside.path()), 2, "no --model given");
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_is_an_error_unless_the_bundle_is_there() {
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
    let left = |folder: &str| {
        let mut names = names(&work.path().join(folder));
        names.retain(|name| !name.ends_with(".lock"));
        names
    };
    assert_eq!(left("engines"), ["entries", "quarantine"]);
    assert_eq!(left("engines/entries"), Vec::<String>::new());
    assert_eq!(left("engines/quarantine"), Vec::<String>::new());
}

#[test]
fn trace_and_synth_never_overwrite() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let printed = succeed(&mut kiln(&["trace", &model, "--out", "onnx", "--precision", "f16"], work.path()));
    assert_eq!(printed.lines().count(), 4, "{printed}");
    assert!(printed.contains("onnx/unet.onnx ("), "{printed}");
    fail(&mut kiln(&["trace", &model, "--out", "onnx"], work.path()), 2, "onnx: exists and is not empty");
    fail(&mut kiln(&["synth", "tiny", "--out", "onnx"], work.path()), 2, "onnx: exists and is not empty");
    fs::write(work.path().join("file"), "mine").expect("a file");
    fail(&mut kiln(&["trace", &model, "--out", "file"], work.path()), 2, "file: exists and is not a folder");
    fail(&mut kiln(&["synth", "sd15", "--out", "file"], work.path()), 2, "file: exists and is not a folder");
    assert_eq!(fs::read(work.path().join("file")).expect("a file"), b"mine");
    let summary = succeed(&mut kiln(&["inspect", "onnx/unet.onnx", "--json"], work.path()));
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["model"]["opsets"]["ai.onnx"], 23);
    assert_eq!(summary["model"]["operators"]["Attention"], 8);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn empty_folders_are_filled_wherever_they_are() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    succeed(&mut kiln(&["trace", &model, "--out", "deep/down/new"], work.path()));
    let expected = names(&work.path().join("deep/down/new"));
    assert_eq!(expected.iter().filter(|name| name.ends_with(".onnx")).count(), 4, "{expected:?}");

    let here = scratch();
    succeed(&mut kiln(&["trace", &model, "--out", "."], here.path()));
    assert_eq!(names(here.path()), expected);
    #[cfg(unix)]
    {
        let (behind, link) = (work.path().join("behind"), work.path().join("link"));
        fs::create_dir(&behind).expect("a folder");
        std::os::unix::fs::symlink("behind", &link).expect("a link");
        succeed(&mut kiln(&["trace", &model, "--out", "link"], work.path()));
        assert!(link.is_symlink());
        assert_eq!(names(&behind), expected);
        std::os::unix::fs::symlink("nowhere", work.path().join("loose")).expect("a link");
        fail(&mut kiln(&["trace", &model, "--out", "loose"], work.path()), 2, "loose: is a link to nothing");
    }
    let there = scratch();
    succeed(&mut kiln(&["synth", "tiny", "--out", "."], there.path()));
    succeed(&mut kiln(&["inspect", "."], there.path()));
}

#[cfg(unix)]
#[test]
fn processes_that_want_the_same_folder_leave_each_other_alone() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let out = work.path().join("out");
    let mine = kiln_bundle::OutputFolder::open(&out).expect("a folder");
    fs::write(mine.path().join("mine"), "mine").expect("a file");
    for args in [&["trace", &model, "--out", "out"][..], &["synth", "tiny", "--out", "out"]] {
        fail(&mut kiln(args, work.path()), 2, "out: is being written by another process");
    }
    mine.publish().expect("published");
    assert_eq!(names(&out), ["mine"]);

    let out = work.path().join("interrupted");
    fs::create_dir_all(out.join(".kiln-partial-abc/unet")).expect("a leftover");
    succeed(&mut kiln(&["trace", &model, "--out", "interrupted"], work.path()));
    assert!(names(&out).iter().all(|name| !name.starts_with('.')), "{:?}", names(&out));
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_written_is_said_before_any_work() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let check = |args: &[&str], code: i32, message: &str, names_the_cache: bool| {
        let output = fail(&mut kiln(args, work.path()), code, message);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.contains("engine-cache"), names_the_cache, "{stderr}");
        assert_eq!(names(work.path()), Vec::<String>::new());
    };
    check(&["trace", &model, "--out", "/sys/kiln"], 5, "error: /sys/kiln: ", false);
    check(&["synth", "sd15", "--out", "/sys/kiln"], 5, "error: /sys/kiln: ", false);
    check(&["compile", &model, "--engine-cache", "/sys/kiln"], 5, "error: /sys/kiln: ", true);
    let generate =
        |out: &'static str| ["generate", "a cat", "--model", &model, "--out", out].map(str::to_owned);
    for (out, code, message) in [
        ("/sys/a.png", 5, "error: /sys: "),
        ("/proc/a.png", 5, "error: /proc: "),
        ("nowhere/a.png", 2, "error: nowhere: no such folder"),
        ("/dev", 2, "error: /dev: is not a regular file"),
        ("..", 2, "error: ..: is not the name of a file"),
    ] {
        let args = generate(out);
        check(&args.each_ref().map(String::as_str), code, message, false);
    }
}

#[test]
fn a_checkpoint_that_could_not_be_run_is_not_compiled() {
    let work = scratch();
    let check = |file: &str, spoil: &dyn Fn(String) -> String, message: &str| {
        let model = tiny();
        let path = model.path().join(file);
        fs::write(&path, spoil(fs::read_to_string(&path).expect("a file"))).expect("spoilt");
        let model = model.path().display().to_string();
        for command in ["compile", "generate"] {
            let args = match command {
                "compile" => vec!["compile", &model],
                _ => vec!["generate", "a cat", "--model", &model],
            };
            let output = fail(&mut kiln(&args, work.path()), 3, message);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.starts_with(&format!("error: {}: ", path.display())), "{stderr}");
        }
        assert!(!work.path().join("engines").exists());
    };
    let scheduler = "scheduler/scheduler_config.json";
    check(scheduler, &|text| text.replace("scaled_linear", "odd"), "beta_schedule: 'odd' is not supported");
    check(scheduler, &|text| text + "}", "trailing characters");
    check("tokenizer/merges.txt", &|text| text + "lonely\n", "line 2: 'lonely' is not a pair");
    check("tokenizer/tokenizer_config.json", &|_| "[".into(), "EOF while parsing");
    check(
        "tokenizer/vocab.json",
        &|text| text.replace("49407", "60000"),
        "has ids up to 60000, and the text encoder's vocab_size is 49408",
    );
}

#[test]
fn inspect_describes_checkpoints_and_bundles() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let text = succeed(&mut kiln(&["inspect", &model], work.path()));
    let first = format!("checkpoint {model} (Stable Diffusion 1.x, StableDiffusionPipeline)\n");
    assert!(text.starts_with(&first), "{text}");
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
    let compiled = "this bundle was compiled for 32x32 pixels and a batch of 1 with guidance or 2 without";
    let refused = |extra: &[&str], message: &str| {
        let message = format!("error: {message}: {compiled}\n");
        fail(&mut kiln(&[&generate[..], extra].concat(), work.path()), 2, &message);
    };
    refused(&["--width", "40"], "width: 40 does not fit");
    refused(&["--height", "64"], "height: 64 does not fit");
    refused(&["--batch-size", "2"], "batch size: 2 does not fit");
    refused(&["--guidance-scale", "1"], "guidance scale: 1 turns guidance off");
    refused(&["--hires", "2"], "hires scale: 2 does not fit");
    let long = "word ".repeat(80);
    let long = ["generate", &long, "--model", bundle.trim(), "--out", "b.png"];
    fail(&mut kiln(&long, work.path()), 2, "prompt: takes 5 blocks of tokens instead of one: this bundle");
    succeed(&mut kiln(&[&generate[..], &["--guidance-scale", "1", "--batch-size", "2"]].concat(), work.path()));
    let picture = work.path().join("a-1.png").display().to_string();
    succeed(&mut kiln(&[&generate[..], &["--init-image", &picture, "--strength", "1"]].concat(), work.path()));
}

#[test]
fn pictures_can_be_refined_by_engines_of_a_fixed_batch() {
    onnxruntime();
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["compile", &model, "--width", "32", "--height", "24", "--batch-size", "2"];
    let bundle = succeed(&mut kiln(&args, work.path()));
    let generate = ["generate", "a cat", "--model", bundle.trim(), "--steps", "2", "--out", "a.png"];
    succeed(&mut kiln(&[&generate[..], &["--batch-size", "2"]].concat(), work.path()));
    let refine = ["--batch-size", "2", "--init-image", "a-0.png", "--out", "b.png"];
    let args = [&generate[..6], &refine].concat();
    assert_eq!(succeed(&mut kiln(&args, work.path())), "b-0.png\nb-1.png\n");
}

#[test]
fn options_that_would_have_no_effect_are_refused() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let bundle = succeed(&mut kiln(&["compile", &model, "--no-reference"], work.path()));
    let options = [["--variant", "fp16"], ["--attention", "plain"], ["--prediction-type", "epsilon"]];
    for option in options {
        let args = [&["generate", "a cat", "--model", bundle.trim()], &option[..]].concat();
        fail(&mut kiln(&args, work.path()), 2, &format!("error: {}: {} is a bundle", option[0], bundle.trim()));
    }
    fail(&mut kiln(&["inspect", &model, "--verify"], work.path()), 2, "is not a bundle, and --verify");
    let onnx = format!("{}/unet.0.onnx", bundle.trim());
    fail(&mut kiln(&["inspect", &onnx, "--verify"], work.path()), 2, "is not a bundle, and --verify");

    let trace = ["trace", &model, "--out", "onnx"];
    let args = [&trace[..], &["--precision", "f16", "--keep-f32", "mid_block.attention"]].concat();
    let output = fail(&mut kiln(&args, work.path()), 2, "has no scope 'mid_block.attention'");
    let hint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(hint.contains("hint: scopes begin with"), "{hint}");
    assert!(hint.contains(" down_blocks.1, ") && hint.contains(" mid_block, "), "{hint}");
    fail(
        &mut kiln(&[&trace[..], &["--cut", "nowhere"]].concat(), work.path()),
        2,
        "has no cut point 'nowhere'",
    );
    assert!(!work.path().join("onnx").exists());
    succeed(&mut kiln(&[&trace[..], &["--keep-f32", "mid_block.attentions"]].concat(), work.path()));
}

#[test]
fn the_manual_and_completions_are_of_the_same_table() {
    let work = scratch();
    succeed(&mut kiln(&["man", "--out", "man"], work.path()));
    let page = |name: &str| fs::read_to_string(work.path().join("man").join(name)).expect(name);
    assert!(
        page("kiln.1").contains("kiln\\-generate")
            && page("kiln-generate.1").contains("\\-\\-guidance\\-scale")
    );
    assert!(page("kiln-bench-memory.1").contains("rounds"));
    assert!(!work.path().join("man/kiln-work.1").exists(), "hidden commands have no page");
    for entry in fs::read_dir(work.path().join("man")).expect("pages") {
        let text = page(&entry.expect("a page").file_name().to_string_lossy());
        let named = text.split("kiln\\-").skip(1).filter_map(|rest| rest.split_once("(1)"));
        for (rest, _) in named.filter(|(rest, _)| rest.len() < 40) {
            page(&format!("kiln-{}.1", rest.replace('\\', "")));
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(&mut kiln(&["completions", shell], work.path()));
        assert!(script.contains("guidance-scale") && script.contains("tensorrt-rtx"), "{shell}");
    }
    fail(&mut kiln(&["completions", "csh"], work.path()), 2, "invalid value 'csh'");
    fs::write(work.path().join("file"), "").expect("a file");
    fail(&mut kiln(&["man", "--out", "file/man"], work.path()), 5, "file/man: ");
}
