//! Engine caches that others write to, and that several processes use at once.

use std::fs;

use kiln_bundle::{Digests, SealKey};
use kiln_compile::{BuildOptions, Checkpoint, EngineCache, TraceOptions};

use super::{UNET, halved, rewrite};
use crate::cli::{kiln, succeed};
use crate::fixtures::{scratch, tiny};

#[test]
fn digests_that_nobody_with_the_key_has_taken_are_not_believed() {
    let folder = scratch();
    let (file, memory) = (folder.path().join("weights"), folder.path().join("memory"));
    fs::write(&file, "weights").expect("a file");
    let key = SealKey::open(&folder.path().join("key")).expect("a key");
    let lie = || Ok::<_, kiln_bundle::BundleError>("what was sealed".to_owned());
    let truth = || Ok::<_, kiln_bundle::BundleError>("what is there".to_owned());
    for forger in [None, Some(SealKey::open(&folder.path().join("another")).expect("a key"))] {
        let mut forged = match &forger {
            None => Digests::load(memory.clone()),
            Some(other) => Digests::load_sealed(memory.clone(), other),
        };
        forged.of("weights", &[&file], lie).expect("remembered");
        forged.save();
        let mut digests = Digests::load_sealed(memory.clone(), &key);
        assert_eq!(digests.of("weights", &[&file], truth).expect("a digest"), "what is there");
    }
    let mut own = Digests::load_sealed(memory.clone(), &key);
    own.of("weights", &[&file], truth).expect("a digest");
    own.save();
    let mut again = Digests::load_sealed(memory, &key);
    assert_eq!(again.of("weights", &[&file], lie).expect("a digest"), "what is there");
}

#[test]
fn a_checkpoint_that_changes_while_it_is_read_is_refused_and_nothing_kept() {
    let (model, folder) = (tiny(), scratch());
    let cache = EngineCache::new(folder.path());
    let options = BuildOptions::cpu(TraceOptions::default());
    let unet = model.path().join(UNET);
    let checkpoint = Checkpoint::open(model.path()).expect("a checkpoint");
    let plan = cache.plan(&checkpoint, &options, &mut |_| {}).expect("a plan");
    let copy = scratch();
    fs::copy(&unet, copy.path().join("a")).expect("a copy");
    rewrite(&copy.path().join("a"), &unet, |name| Some(name.to_owned()), halved);
    let error = cache.execute(&plan, &mut |_| {}).expect_err("a changed file").to_string();
    assert!(error.ends_with("has changed while it was read"), "{error}");
    assert!(cache.items().expect("items").iter().all(|item| !item.name.starts_with("unet")));
    let checkpoint = Checkpoint::open(model.path()).expect("a checkpoint");
    cache.compile(&checkpoint, &options, &mut |_| {}).expect("a bundle");
}

#[test]
fn pruning_leaves_what_kiln_did_not_make() {
    let work = scratch();
    let cache = work.path().join("engines");
    let own = [
        "entries/photos/a.jpg",
        "quarantine/mine/a",
        "notes/bundle.yaml",
        "entries/x-0123456789abcdef/photo.jpg",
    ];
    for file in own {
        let path = cache.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, "my: notes").expect("a file");
    }
    for args in [&["cache", "prune"][..], &["cache", "verify"], &["cache", "prune", "--max-size", "0B"]] {
        succeed(&mut kiln(args, work.path()));
        assert!(own.iter().all(|file| cache.join(file).exists()), "{args:?}");
    }
}

#[test]
fn pruning_leaves_what_a_process_draws_with() {
    let (model, work) = (tiny(), scratch());
    let path = model.path().display().to_string();
    let draw = ["generate", "x", "--model", &path, "--backend", "rten", "--seed", "1"];
    succeed(&mut kiln(&[&draw[..], &["--steps", "1", "--out", "first.png"]].concat(), work.path()));
    let mut child =
        kiln(&[&draw[..], &["--steps", "30", "--out", "a.png"]].concat(), work.path()).spawn().expect("kiln");
    while child.try_wait().expect("a state").is_none() {
        succeed(&mut kiln(&["cache", "prune", "--max-size", "0B"], work.path()));
    }
    assert!(child.wait().expect("an end").success() && work.path().join("a.png").exists());
    succeed(&mut kiln(&["cache", "prune", "--max-size", "0B"], work.path()));
    assert_eq!(succeed(&mut kiln(&["cache", "list"], work.path())), "");
}
