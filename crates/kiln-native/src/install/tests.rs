//! Installations with a pip that is a shell script.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::env::{KILN_CACHE_DIR, KILN_ONNXRUNTIME, PATH};
use crate::locate::Origin;
use crate::unpack::tests::write_wheel;

/// Names the folder of a [`Machine`] to a copy of this test program.
const FOLDER: &str = "KILN_NATIVE_TEST_FOLDER";

struct Machine {
    folder: PathBuf,
    environment: Environment,
    wheel: &'static Wheel,
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Machine {
    /// A machine whose pip runs `script`, with `$dest` the folder to download into and `$root` the machine's folder.
    fn new(folder: &TempDir, script: &str) -> Machine {
        let root = folder.path();
        let name = Machine::library_name();
        let library = format::tests::library(OS, ARCH);
        write_wheel(
            &root.join("pinned.whl"),
            &[(name, &library), ("some/LICENSE", b"free"), ("other.py", b"")],
        );
        fs::create_dir(root.join("bin")).unwrap();
        let python = root.join("bin/python3");
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in *--version*) exit 0;; esac\nroot='{}'\necho call >> \"$root/calls\"\n\
             while [ \"$1\" != --dest ]; do shift; done\ndest=$2\n{script}\n",
            root.display()
        );
        fs::write(&python, text).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's child may hold the script open for writing until it has started its own program.
        let busy = || Command::new(&python).arg("--version").status().is_err();
        while busy() {
            thread::sleep(Duration::from_millis(5));
        }
        Machine::open(root)
    }

    fn library_name() -> &'static str {
        match OS {
            "macos" => "some/libsome.1.0.dylib",
            _ => "some/libsome.so.1.0",
        }
    }

    fn open(root: &Path) -> Machine {
        let pinned = fs::read(root.join("pinned.whl")).unwrap();
        let members = [(Machine::library_name(), 1000), ("some/LICENSE", 1000)];
        let platform = Platform {
            os: OS,
            arch: ARCH,
            tag: "some_tag",
            bytes: pinned.len() as u64,
            sha256: leak(hash(&pinned)),
            members: Box::leak(Box::new(members)),
        };
        let wheel = Wheel {
            title: "Some",
            variable: KILN_ONNXRUNTIME,
            stem: "some",
            package: "some",
            beside: &[],
            version: "1.0",
            release: "1.0",
            abi: "none",
            platforms: Box::leak(Box::new([platform])),
            companions: &[],
        };
        let mut path = OsString::from(root.join("bin"));
        path.push(":");
        path.push(std::env::var_os(PATH).unwrap_or_default());
        let variables = [(KILN_CACHE_DIR, root.join("cache").into()), (PATH, path)].into();
        let environment = Environment { variables, program: None };
        Machine { folder: root.into(), environment, wheel: Box::leak(Box::new(wheel)) }
    }

    fn install(&self) -> Result<Found, Error> {
        self.environment.install(self.wheel, &mut |_| {})
    }

    fn n_calls(&self) -> usize {
        fs::read_to_string(self.folder.join("calls")).unwrap_or_default().lines().count()
    }

    /// Everything in kiln's folder for native libraries but the lock.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.environment.native_dir().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }

    #[track_caller]
    fn fails(&self, kind: ErrorKind, reason: &str) {
        let error = self.install().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(self.environment.locate(self.wheel).unwrap(), None);
        assert!(self.left().is_empty(), "{:?}", self.left());
    }
}

const GOOD: &str = "cp \"$root/pinned.whl\" \"$dest/some-1.0-cp312-cp312-some_tag.whl\"";

#[test]
fn a_wheel_is_fetched_once_and_only_its_members_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(&folder, GOOD);
    let mut phases = Vec::new();
    let found = machine.environment.install(machine.wheel, &mut |phase| phases.push(phase)).unwrap();
    assert_eq!(found.origin, Origin::Installed);
    assert_eq!(phases.first(), Some(&Progress::Locating));
    let total = machine.wheel.platforms[0].bytes;
    let end = [Progress::Fetching { done: total, total }, Progress::Verifying, Progress::Unpacking];
    assert!(phases.ends_with(&end), "{phases:?}");

    let inside = fs::read_dir(found.path.parent().unwrap()).unwrap();
    let mut inside: Vec<_> = inside.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    inside.sort();
    assert_eq!(inside, ["LICENSE", "ORIGIN.txt", crate::wheel::bare_name(Machine::library_name())]);
    // One user may install what others use.
    let modes = [&*found.path, found.path.parent().unwrap()]
        .map(|path| fs::metadata(path).unwrap().permissions().mode());
    assert_eq!(modes.map(|mode| mode & 0o777), [0o644, 0o755]);
    let origin = fs::read_to_string(found.path.with_file_name("ORIGIN.txt")).unwrap();
    assert_eq!(origin, format!("some 1.0 (some_tag)\nsha256 {}\n", machine.wheel.platforms[0].sha256));

    assert_eq!(machine.install().unwrap(), found);
    assert_eq!(machine.environment.locate(machine.wheel).unwrap(), Some(found));
    assert_eq!(machine.n_calls(), 1);
}

#[test]
fn what_a_variable_names_is_no_installation() {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = Machine::new(&folder, GOOD);
    machine.environment.variables.insert(KILN_ONNXRUNTIME, "nowhere".into());
    machine.install().unwrap();
    machine.install().unwrap();
    assert_eq!(machine.n_calls(), 1);
}

#[test]
fn pip_is_told_the_pinned_hash_and_runs_in_a_folder_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("cp \"$dest/requirements.txt\" \"$root\"; pwd > \"$root/cwd\"; {GOOD}");
    let machine = Machine::new(&folder, &script);
    machine.install().unwrap();
    let requirements = fs::read_to_string(machine.folder.join("requirements.txt")).unwrap();
    assert_eq!(requirements, format!("some==1.0 --hash=sha256:{}\n", machine.wheel.platforms[0].sha256));
    assert!(fs::read_to_string(machine.folder.join("cwd")).unwrap().trim().ends_with("/download"));
}

#[test]
fn failures_leave_nothing() {
    let check = |script: &str, kind, reason: &str| {
        let folder = tempfile::tempdir().unwrap();
        Machine::new(&folder, script).fails(kind, reason);
    };
    let refused = "echo 'ERROR: No matching distribution found for some==1.0' >&2; exit 1";
    let reason = "pip: could not fetch some 1.0: No matching distribution found for some==1.0";
    check(refused, ErrorKind::Fetch, reason);
    check("true", ErrorKind::Fetch, "fetched no wheel");
    check(
        &format!("{GOOD}; for w in \"$dest\"/*.whl; do echo more >> \"$w\"; done"),
        ErrorKind::Wheel,
        "expected",
    );
    check("kill -9 $$", ErrorKind::Fetch, "signal: 9");
}

#[test]
fn a_wheel_with_a_library_for_another_machine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    Machine::new(&folder, GOOD);
    let members: [(&str, &[u8]); 2] = [(Machine::library_name(), b"#!/bin/sh"), ("some/LICENSE", b"free")];
    write_wheel(&folder.path().join("pinned.whl"), &members);
    Machine::open(folder.path()).fails(ErrorKind::Wheel, "is not a shared library for this machine");
}

#[test]
fn a_broken_installation_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(&folder, GOOD);
    let found = machine.install().unwrap();
    fs::write(&found.path, b"").unwrap();
    assert_eq!(machine.environment.locate(machine.wheel).unwrap(), None);
    assert_eq!(machine.install().unwrap(), found);
    assert_eq!(machine.n_calls(), 2);
}

#[test]
fn a_platform_without_a_wheel_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(&folder, GOOD);
    let wheel = Wheel { platforms: &[], ..*machine.wheel };
    let error = machine.environment.install(&wheel, &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Platform);
    assert_eq!(error.to_string(), format!("Some 1.0: has no wheel for {OS} on {ARCH}"));
}

#[test]
fn installations_at_the_same_time_fetch_once() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(&folder, &format!("sleep 0.3; {GOOD}"));
    let found = thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| machine.install().unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(found[0], found[1]);
    assert_eq!(machine.n_calls(), 1);
}

/// Does nothing but for `a_killed_installation_leaves_nothing_that_is_found`, which starts it in a process to kill.
#[test]
fn installs_in_a_child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let _ = Machine::open(Path::new(&folder)).install();
    }
}

#[test]
fn a_killed_installation_leaves_nothing_that_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let slow = "[ -e \"$root/again\" ] || { echo $$ > \"$root/pid.new\"; mv \"$root/pid.new\" \"$root/pid\"; exec sleep 30; }";
    let machine = Machine::new(&folder, &format!("{slow}\n{GOOD}"));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "install::tests::installs_in_a_child"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (pid, start) = (folder.path().join("pid"), Instant::now());
    while !pid.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "the child never called pip");
        thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let pip = fs::read_to_string(&pid).unwrap();
    Command::new("kill").arg(pip.trim()).status().unwrap();
    assert_eq!(machine.left().len(), 1, "{:?}", machine.left());
    assert_eq!(machine.environment.locate(machine.wheel).unwrap(), None);

    fs::write(folder.path().join("again"), "").unwrap();
    machine.install().unwrap();
    assert_eq!(machine.left(), ["some-1.0"]);
}

#[test]
fn a_finished_folder_is_not_found_before_it_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new(&folder, GOOD);
    let found = machine.install().unwrap();
    let target = machine.environment.install_dir(machine.wheel).unwrap();
    fs::rename(&target, target.with_file_name(".some-1.0.partial-x")).unwrap();
    assert_eq!(machine.environment.locate(machine.wheel).unwrap(), None);
    assert_eq!(machine.install().unwrap(), found);
    assert_eq!(machine.left(), ["some-1.0"]);
}
