//! A cache that can be trusted: damage of every kind is caught before anything is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use kiln_compile::{BuildOptions, Checkpoint, Compiled, EngineCache, ItemKind, TraceOptions};
use tempfile::TempDir;

use crate::cli::{fail, kiln, succeed};
use crate::fixtures::{copy_folder, scratch, tiny};

struct Fixture {
    model: TempDir,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { model: tiny(), folder: scratch() }
    }

    fn cache(&self) -> EngineCache {
        EngineCache::new(self.folder.path().join("engines"))
    }

    fn key(&self) -> kiln_bundle::SealKey {
        kiln_bundle::SealKey::open(&self.folder.path().join("engines/.seal.key")).expect("a key")
    }

    fn compile(&self) -> Compiled {
        let checkpoint = Checkpoint::open(self.model.path()).expect("a checkpoint");
        self.cache()
            .compile(&checkpoint, &BuildOptions::cpu(TraceOptions::default()), &mut |_| {})
            .expect("a bundle")
    }

    fn entry(&self, part: &str) -> PathBuf {
        let items = self.cache().items().expect("items");
        items.into_iter().find(|item| item.name.starts_with(part)).expect("the entry").path
    }

    fn quarantined(&self) -> Vec<String> {
        let items = self.cache().items().expect("items").into_iter();
        items
            .filter_map(|item| match item.kind {
                ItemKind::Quarantined(reason) => Some(reason),
                _ => None,
            })
            .collect()
    }
}

/// Flips one bit of a file, which gets another modification time as any other write would give it.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("a file");
    // A record that was made again can be a digit shorter.
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("a file");
}

/// Places all over a file: both ends, and one in each eighth.
fn places(path: &Path) -> Vec<usize> {
    let length = fs::metadata(path).expect("a file").len() as usize;
    (0..=8).map(|i| (i * length / 8).min(length - 1)).collect()
}

#[test]
fn a_flipped_bit_anywhere_in_an_entry_is_caught_and_the_part_built_again() {
    let fixture = Fixture::new();
    fixture.compile();
    let entry = fixture.entry("vae_decoder-cpu");
    let mut n_damaged = 0;
    for name in ["vae_decoder.data", "vae_decoder.onnx", "entry.yaml", "entry.seal"] {
        for at in places(&entry.join(name)) {
            // Without the bundle, whose own check would come first.
            fs::remove_dir_all(fixture.compile().bundle.root()).expect("a bundle");
            flip(&entry.join(name), at);
            n_damaged += 1;
            assert!(!fixture.compile().was_cached, "{name} at {at}");
            assert_eq!(fixture.quarantined().len(), n_damaged, "{name} at {at}");
        }
    }
    let reasons = fixture.quarantined();
    assert!(reasons.iter().any(|reason| reason.ends_with("content does not match the digest in the manifest")));
    assert!(reasons.iter().any(|reason| reason.contains("was not sealed by this user's kiln")), "{reasons:?}");
}

#[test]
fn a_flipped_bit_anywhere_in_a_bundle_is_caught_when_it_is_opened() {
    let fixture = Fixture::new();
    let bundle = fixture.compile().bundle;
    let names: Vec<String> = bundle.manifest().files.keys().cloned().collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let path = bundle.path(&name);
        let whole = fs::read(&path).expect("a file");
        for at in places(&path) {
            flip(&path, at);
            let error = kiln_bundle::Bundle::open(bundle.root()).expect_err("damaged").to_string();
            assert!(error.contains(&name) && error.contains("does not match the digest"), "{error}");
            fs::write(&path, &whole).expect("a file");
        }
        fs::write(&path, &whole[1..]).expect("a file");
        let error = kiln_bundle::Bundle::open(bundle.root()).expect_err("shorter").to_string();
        assert!(error.contains("the manifest says"), "{error}");
        fs::write(&path, &whole).expect("a file");
    }
    kiln_bundle::Bundle::open(bundle.root()).expect("whole again");
}

#[test]
fn a_flipped_bit_anywhere_in_a_manifest_or_its_seal_is_caught() {
    let fixture = Fixture::new();
    let bundle = fixture.compile().bundle;
    let path = bundle.path("bundle.yaml");
    let whole = fs::read(&path).expect("a manifest");
    for at in (0..whole.len()).step_by(whole.len() / 200 + 1) {
        flip(&path, at);
        let error = kiln_bundle::Bundle::open(bundle.root()).expect_err("damaged").to_string();
        assert!(error.contains("bundle.yaml: "), "at {at}: {error}");
        fs::write(&path, &whole).expect("a manifest");
    }
    for at in places(&bundle.path("bundle.seal")) {
        flip(&bundle.path("bundle.seal"), at);
        assert!(!fixture.compile().was_cached, "at {at}");
        assert!(fixture.compile().was_cached, "at {at}");
    }
}

#[test]
fn a_manifest_that_somebody_else_wrote_is_not_used() {
    let fixture = Fixture::new();
    let bundle = fixture.compile().bundle;
    let (engine, manifest) = (bundle.path("unet.onnx"), bundle.path("bundle.yaml"));
    let digest = |path: &Path| kiln_bundle::fs::digest(path).expect("a digest");
    let before = (digest(&engine), fs::metadata(&engine).expect("a file").len());
    fs::remove_file(&engine).expect("a link to the entry's file");
    fs::write(&engine, b"something else").expect("a file");
    let yaml = fs::read_to_string(&manifest).expect("a manifest");
    let (yaml, _) = yaml.rsplit_once("# blake3 ").expect("the manifest's own digest");
    let yaml =
        yaml.replace(&before.0, &digest(&engine)).replace(&format!("size: {}\n", before.1), "size: 14\n");
    let own = blake3::hash(yaml.as_bytes()).to_hex();
    fs::write(&manifest, format!("{yaml}# blake3 {own}\n")).expect("a manifest");
    kiln_bundle::Bundle::open(bundle.root()).expect("consistent in itself");
    let checked = fixture.cache().verify().expect("checked");
    let errors: Vec<String> = checked.into_iter().filter_map(|c| c.error).map(|e| e.to_string()).collect();
    assert!(errors.len() == 1 && errors[0].contains("was not sealed by this user's kiln"), "{errors:?}");
    assert!(!fixture.compile().was_cached);
}

#[test]
fn damage_that_left_no_trace_in_times_is_built_anew_once_it_shows() {
    let fixture = Fixture::new();
    let bundle = fixture.compile().bundle;
    let entry = fixture.entry("unet-cpu");
    flip(&entry.join("unet.data"), 5000);
    // As if the digests had been remembered after the damage.
    let memory = entry.join(".digests.sealed");
    let digests = fs::read_to_string(&memory).expect("digests");
    let mut vouching = kiln_bundle::Digests::load_sealed(memory, &fixture.key());
    vouching.forget();
    let (_, json) = digests.split_once('\n').expect("a seal in the first line");
    let old: serde_json::Value = serde_json::from_str(json).expect("JSON");
    for name in ["unet.data", "unet.onnx"] {
        let path = entry.join(name);
        let known = old[name]["blake3"].as_str().expect("a digest").to_owned();
        vouching.of(name, &[&path], || Ok::<_, kiln_bundle::BundleError>(known)).expect("remembered");
    }
    vouching.save();
    fs::remove_dir_all(bundle.root()).expect("a bundle");
    let again = fixture.compile();
    again.bundle.verify().expect("whole");
    assert_eq!(fixture.quarantined().len(), 1);
}

#[test]
fn records_that_cannot_be_read_are_named_and_removed() {
    let fixture = Fixture::new();
    fixture.compile();
    let entry = fixture.entry("unet-cpu");
    fs::write(entry.join("entry.yaml"), "garbage").expect("a file");
    let errors = || fixture.cache().verify().expect("checked").into_iter().filter_map(|c| c.error).count();
    assert_eq!(errors(), 1);
    assert_eq!((errors(), fixture.quarantined().len()), (0, 1));
}

#[test]
fn what_a_killed_process_left_is_swept_away() {
    let fixture = Fixture::new();
    fixture.compile();
    let entries = fixture.cache().root().join("entries");
    let (left, built) = (entries.join(".unet-cpu-1.partial-abc"), entries.join(".unet-cpu-2.partial-abc"));
    fs::create_dir(&left).expect("a folder");
    fs::create_dir(&built).expect("a folder");
    let _lock = kiln_bundle::fs::Lock::acquire(&entries.join(".unet-cpu-2.lock")).expect("a lock");
    fixture.cache().prune(None, None, &[], false).expect("pruned");
    assert!(!left.exists() && built.exists(), "only what nobody builds");
}

#[cfg(unix)]
#[test]
fn an_interrupted_process_leaves_nothing_half_built() {
    let work = scratch();
    let sd15 = work.path().join("model");
    kiln_compile::synthesize(
        kiln_compile::Architecture::Tiny,
        kiln_graph::ElementType::F32,
        1,
        &sd15,
        &mut |_, _| {},
    )
    .expect("a checkpoint");
    let model = sd15.display().to_string();
    for (signal, milliseconds) in [("INT", 20), ("TERM", 30), ("INT", 40), ("TERM", 50)] {
        let mut child =
            kiln(&["compile", &model], work.path()).stdout(Stdio::null()).spawn().expect("kiln runs");
        sleep(Duration::from_millis(milliseconds));
        let kill =
            std::process::Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
        let code = child.wait().expect("kiln ends").code();
        let ended = if signal == "INT" { 130 } else { 143 };
        assert!(
            [Some(0), Some(ended)].contains(&code) || milliseconds < 30,
            "{code:?} after {milliseconds} ms"
        );
        let hidden = |folder: &str| {
            let names = fs::read_dir(work.path().join(folder)).into_iter().flatten().flatten();
            names.map(|e| e.file_name().to_string_lossy().into_owned()).find(|name| name.contains(".partial-"))
        };
        assert_eq!((hidden("engines"), hidden("engines/entries")), (None, None));
    }
}

#[test]
fn an_entry_of_another_user_is_not_used() {
    let (mine, theirs) = (Fixture::new(), Fixture::new());
    mine.compile();
    theirs.compile();
    let entry = mine.entry("unet-cpu");
    let stranger = theirs.entry("unet-cpu");
    assert_eq!(entry.file_name(), stranger.file_name(), "the same recipe");
    fs::remove_dir_all(&entry).expect("an entry");
    copy_folder(&stranger, &entry);
    fs::remove_dir_all(mine.compile().bundle.root()).expect("a bundle");
    mine.compile();
    assert!(mine.quarantined()[0].contains("was not sealed by this user's kiln"), "{:?}", mine.quarantined());
}

#[cfg(unix)]
#[test]
fn entries_and_the_key_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    fixture.compile();
    let root = fixture.cache().root().to_path_buf();
    let mode = |name: &str| fs::metadata(root.join(name)).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode("entries"), mode("quarantine"), mode(".seal.key")), (0o700, 0o700, 0o600));
    let bundle = fixture.compile().bundle.root().to_path_buf();
    let name = bundle.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!((mode(&name), mode(&format!("{name}/unet.data"))), (0o700, 0o600));
    fs::set_permissions(root.join(".seal.key"), fs::Permissions::from_mode(0o644)).expect("permissions");
    let checkpoint = Checkpoint::open(fixture.model.path()).expect("a checkpoint");
    let options = BuildOptions::cpu(TraceOptions { runtime_ports: true, ..TraceOptions::default() });
    let error = fixture.cache().compile(&checkpoint, &options, &mut |_| {}).expect_err("an exposed key");
    assert!(
        error.to_string().ends_with(".seal.key: others than its owner can read or write this key"),
        "{error}"
    );
}

#[test]
fn a_process_that_is_killed_at_any_time_leaves_nothing_that_looks_finished() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["compile", &model, "--no-reference"];
    let mut n_killed = 0;
    for milliseconds in (0..150).step_by(6) {
        let mut child = kiln(&args, work.path()).stdout(Stdio::null()).spawn().expect("kiln runs");
        sleep(Duration::from_millis(milliseconds));
        child.kill().expect("a child");
        n_killed += usize::from(!child.wait().expect("a child").success());
        let bundle = succeed(&mut kiln(&args, work.path()));
        succeed(&mut kiln(&["inspect", bundle.trim(), "--verify"], work.path()));
        succeed(&mut kiln(&["cache", "verify"], work.path()));
        let quarantine = fs::read_dir(work.path().join("engines/quarantine")).expect("a folder");
        assert_eq!(quarantine.count(), 0, "after {milliseconds} ms");
        fs::remove_dir_all(work.path().join("engines")).expect("a cache");
    }
    assert!(n_killed > 3, "{n_killed} were still running when they were killed");
}

#[test]
fn processes_that_want_the_same_bundle_build_it_once() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let args = ["compile", &model, "--no-reference", "--json"];
    let spawn = || kiln(&args, work.path()).stdout(Stdio::piped()).spawn().expect("kiln runs");
    let children: Vec<_> = (0..6).map(|_| spawn()).collect();
    let reports = children.into_iter().map(|child| child.wait_with_output().expect("kiln ends"));
    let built = reports.filter(|output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).contains(r#""cached":false"#)
    });
    assert_eq!(built.count(), 1);
}

#[test]
fn what_was_used_longest_ago_is_removed_first() {
    let fixture = Fixture::new();
    let kept = fixture.compile().bundle;
    let cache = fixture.cache();
    let everything = cache.items().expect("items");
    let pruned = cache.prune(Some(0), None, &[kept.root()], true).expect("a plan");
    assert_eq!(pruned.items, Vec::<String>::new(), "what the bundle shares files with is kept");
    assert_eq!(cache.items().expect("items").len(), everything.len());
    let pruned = cache.prune(Some(0), None, &[], false).expect("pruned");
    assert!(kept.root().exists() && !pruned.items.is_empty(), "a bundle that is open is kept");
    kept.verify().expect("whole");
    drop(kept);
    let n_others = pruned.items.len();
    let pruned = cache.prune(Some(0), None, &[], false).expect("pruned");
    assert_eq!(n_others + pruned.items.len(), everything.len());
    assert!(pruned.bytes > 0);
    assert!(cache.items().expect("items").is_empty());
}

#[test]
fn the_cache_is_shown_and_cleaned_by_commands() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    succeed(&mut kiln(&["compile", &model, "--no-reference"], work.path()));
    let listed = succeed(&mut kiln(&["cache", "list"], work.path()));
    assert_eq!(listed.lines().count(), 5, "{listed}");
    let shown = succeed(&mut kiln(&["cache", "show", "unet"], work.path()));
    assert!(shown.contains("graph unet.0: ") && shown.contains("emitted with attention: fused"), "{shown}");
    fail(&mut kiln(&["cache", "show", "vae"], work.path()), 2, "'vae' is the beginning of vae_");
    fail(&mut kiln(&["cache", "show", "x"], work.path()), 2, "the cache has no 'x'");
    let engine = fs::read_dir(work.path().join("engines/entries")).expect("entries");
    let engine =
        engine.map(|entry| entry.expect("an entry").path()).find(|path| path.join("unet.data").exists());
    flip(&engine.expect("an entry").join("unet.data"), 5000);
    fail(&mut kiln(&["cache", "verify"], work.path()), 3, "items are damaged");
    let pruned = succeed(&mut kiln(&["cache", "prune", "--json"], work.path()));
    assert!(pruned.contains(r#""unet-cpu-"#) && !pruned.contains("text_encoder-cpu"), "{pruned}");
    fail(&mut kiln(&["cache", "prune", "--max-size", "much"], work.path()), 2, "'much' is not a size");
    succeed(&mut kiln(&["cache", "prune", "--max-size", "0B"], work.path()));
    assert_eq!(succeed(&mut kiln(&["cache", "list"], work.path())), "");
}
