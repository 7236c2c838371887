//! What the command writes, and what is left of it when it ends before its time.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{onnxruntime, scratch, tiny};

const DRAW: [&str; 8] = ["generate", "x", "--model", "model", "--steps", "1", "--seed", "1"];

/// A folder with a small model.
fn work() -> TempDir {
    onnxruntime();
    let (work, model) = (scratch(), tiny());
    symlink(model.keep(), work.path().join("model")).expect("a link");
    work
}

fn draw(args: &[&str], folder: &Path) -> Command {
    kiln(&[&DRAW, args].concat(), folder)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !["engines", "model"].contains(&name.as_str())).collect();
    names.sort();
    names
}

fn is_png(path: &Path) -> bool {
    fs::read(path).expect("a file").starts_with(b"\x89PNG")
}

#[track_caller]
fn send(signal: &str, pid: impl ToString) {
    let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(2));
    }
}

fn quiet(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kiln runs")
}

#[test]
fn links_stay_links() {
    let work = work();
    let (link, behind) = (work.path().join("link.png"), work.path().join("behind"));
    fs::create_dir(&behind).expect("a folder");
    symlink("behind/picture.png", &link).expect("a link");
    for _ in 0..2 {
        succeed(&mut draw(&["--out", "link.png"], work.path()));
        assert!(link.is_symlink() && is_png(&behind.join("picture.png")));
        assert_eq!(
            (names(&behind), names(work.path())),
            (vec!["picture.png".into()], vec!["behind".into(), "link.png".into()])
        );
    }
}

#[test]
fn standard_output_takes_no_file() {
    let work = work();
    let link = work.path().join("stdout.png");
    symlink("/proc/self/fd/1", &link).expect("a link");
    let captured = work.path().join("captured");
    let message = "leads to an open descriptor, not to a file";
    for (path, message) in [("stdout.png", message), ("/dev/stdout", message), ("-", "is no file")] {
        for option in ["--out", "--memory-trace"] {
            let mut command = draw(&[option, path], work.path());
            command.stdout(File::create(&captured).expect("a file"));
            let output = command.output().expect("kiln runs");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.starts_with(&format!("error: {path}: {message}")), "{stderr}");
        }
        assert!(link.is_symlink() && fs::metadata(&captured).expect("a file").len() == 0);
    }
}

#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_none() {
    let work = work();
    for args in [&["inspect", "model", "--json"][..], &["--help"], &["--version"], &["runtime", "list"]] {
        let full = || File::options().write(true).open("/dev/full").expect("a device");
        let output = kiln(args, work.path()).stdout(full()).output().expect("kiln runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: standard output: no space left on device\n"), "{stderr}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let status = kiln(args, work.path()).stdout(writer).status().expect("kiln runs");
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn processes_that_draw_at_once_take_different_names() {
    let work = work();
    succeed(&mut draw(&["--out", "first.png"], work.path()));
    let children: Vec<Child> = (0..4).map(|_| quiet(draw(&["--batch-size", "2"], work.path()))).collect();
    for mut child in children {
        assert!(child.wait().expect("kiln ends").success());
    }
    let mut expected = vec!["first.png".to_owned()];
    for k in ["", "-v2", "-v3", "-v4"] {
        expected.extend([0, 1].map(|i| format!("kiln-1{k}-{i}.png")));
    }
    expected.sort();
    assert_eq!(names(work.path()), expected);
    assert!(names(work.path()).iter().all(|name| is_png(&work.path().join(name))));
}

#[test]
fn a_memory_trace_that_cannot_be_written_loses_no_picture() {
    let work = work();
    let trace = "t".repeat(300);
    fail(&mut draw(&["--out", "o.png", "--memory-trace", &trace], work.path()), 5, "name too long");
    assert!(is_png(&work.path().join("o.png")));
    assert_eq!(names(work.path()), ["o.png"]);
    let same = draw(&["--out", "p.png", "--memory-trace", "p.png"], work.path());
    fail(&mut { same }, 2, "p.png: cannot be both a picture and a memory trace");
}

#[test]
fn a_file_over_the_users_limit_is_an_error() {
    let work = work();
    succeed(&mut draw(&["--out", "o.png"], work.path()));
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 8; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_kiln")]).args(DRAW);
    shell.args(["--width", "256", "--height", "256", "--out", "p.png"]);
    shell.current_dir(work.path()).env("KILN_ENGINE_CACHE", work.path().join("engines"));
    fail(&mut shell, 5, "p.png: file too large");
    assert_eq!(names(work.path()), ["o.png"]);
}

#[test]
fn packing_that_is_interrupted_leaves_nothing() {
    let work = work();
    let bundle = succeed(&mut kiln(&["compile", "model"], work.path()));
    let out = work.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let pack = || kiln(&["bundle", "pack", bundle.trim(), "--out", "out/p.kiln", "--level", "19"], work.path());
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(143)), ("KILL", None)] {
        let mut child = quiet(pack());
        wait_until("a partial file", || !names(&out).is_empty());
        send(signal, child.id());
        let found = child.wait().expect("kiln ends").code();
        assert!(found == code || found == Some(0), "{found:?}");
        let _ = fs::remove_file(out.join("p.kiln"));
        assert!(code.is_none() || names(&out).is_empty(), "{:?}", names(&out));
    }
    fs::write(out.join(".kiln-abc.tmp"), "half").expect("what a killed process left");
    succeed(&mut pack());
    assert_eq!(names(&out), ["p.kiln"]);
}

#[test]
fn pip_ends_with_kiln() {
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(143)), ("KILL", None)] {
        let work = scratch();
        let path = |name: &str| work.path().join(name);
        let script = "#!/bin/sh\ncase \"$*\" in *--version*) exit 0;; esac\n\
                      sleep 90 & echo $! >\"$ROOT/pid.new\"; mv \"$ROOT/pid.new\" \"$ROOT/pid\"; exec sleep 90\n";
        fs::create_dir(path("bin")).expect("a folder");
        fs::write(path("bin/python3"), script).expect("a script");
        fs::set_permissions(path("bin/python3"), fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut command = kiln(&["runtime", "install", "cpu"], work.path());
        let search = format!("{}:{}", path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", search).env("KILN_CACHE_DIR", path("cache")).env("ROOT", work.path());
        let mut child = quiet(command);
        wait_until("pip is asked", || path("pid").exists());
        let group = fs::read_to_string(path("pid")).expect("a number");
        let pip = parent(group.trim()).expect("pip runs");
        send(signal, child.id());
        assert_eq!(child.wait().expect("kiln ends").code(), code);
        wait_until("pip ends", || parent(&pip).is_none());
        if code.is_some() {
            wait_until("what pip started ends", || parent(group.trim()).is_none());
            assert_eq!(names(&path("cache/native")), [".onnxruntime.lock"]);
        } else {
            send("KILL", group.trim());
        }
    }
}

/// The parent of a process that runs.
fn parent(pid: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
    field("State:").filter(|state| !state.starts_with(['Z', 'X']))?;
    field("PPid:")
}

#[test]
fn a_signal_at_any_time_is_no_crash_and_leaves_nothing() {
    let work = work();
    succeed(&mut draw(&["--out", "o.png"], work.path()));
    let start = Instant::now();
    succeed(&mut draw(&["--out", "o.png"], work.path()));
    let whole = start.elapsed();
    let mut n_ended = 0;
    for i in 1..=40 {
        let mut child = quiet(draw(&["--out", "k.png"], work.path()));
        sleep(whole * i / 40);
        let (signal, code) = if i % 2 == 0 { ("INT", 130) } else { ("TERM", 143) };
        send(signal, child.id());
        let status: ExitStatus = child.wait().expect("kiln ends");
        // Before kiln watches, the signal itself ends it.
        assert!(status.code().is_none_or(|found| found == code || found == 0), "{status}");
        use std::os::unix::process::ExitStatusExt;
        assert!(status.signal().is_none_or(|signal| [2, 15].contains(&signal)), "{status}");
        n_ended += usize::from(status.code() == Some(code));
        let _ = fs::remove_file(work.path().join("k.png"));
        assert_eq!(names(work.path()), ["o.png"]);
    }
    assert!(n_ended > 10, "{n_ended} of 40 were still running");
}

#[test]
fn weights_that_are_cut_while_they_are_mapped_are_named() {
    let work = work();
    succeed(&mut draw(&["--out", "o.png"], work.path()));
    let entries = work.path().join("engines/entries");
    let unet = names(&entries).into_iter().find(|name| name.starts_with("unet-cpu-")).expect("an entry");
    let weights = entries.join(unet).join("unet.data");
    let mut command = kiln(&["generate", "x", "--model", "model", "--steps", "999"], work.path());
    command.args(["--weights", "mapped", "--width", "128", "--height", "128", "--out", "p.png"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("kiln runs");
    let maps = format!("/proc/{}/maps", child.id());
    let is_mapped = || fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("unet.data"));
    wait_until("the weights are mapped", is_mapped);
    // What is cut before all segments are loaded is an error of loading.
    sleep(Duration::from_millis(500));
    File::options().write(true).open(&weights).and_then(|file| file.set_len(0)).expect("cut");
    let output = child.wait_with_output().expect("kiln ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("unet.data"), "{stderr}");
    assert_eq!(names(work.path()), ["o.png"]);
}
