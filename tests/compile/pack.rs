//! Bundles as single files.

use std::fs;
use std::io::Write;
use std::path::Path;

use kiln_bundle::{Bundle, pack, unpack};
use kiln_compile::TraceOptions;

use crate::cli::{fail, kiln, succeed};
use crate::families::Family;
use crate::fixtures::{bundle, scratch, tiny};

fn packed() -> (Bundle, tempfile::TempDir) {
    let model = tiny();
    let bundle = bundle(model.path(), &TraceOptions::default());
    let folder = scratch();
    pack(&bundle, &folder.path().join("b.kiln"), 1).expect("packed");
    (bundle, folder)
}

/// Members of a tar archive: name, type and content.
type Member<'a> = (&'a str, tar::EntryType, &'a [u8]);

fn archive(path: &Path, members: &[Member<'_>]) {
    let file = fs::File::create(path).expect("a file");
    let mut archive = tar::Builder::new(zstd::Encoder::new(file, 1).expect("zstd"));
    for (name, kind, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        // Past the library's own refusal of names that leave the folder.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, *content).expect("a member");
    }
    archive.into_inner().expect("tar").finish().expect("zstd").flush().expect("a file");
}

#[test]
fn a_bundle_comes_back_as_it_was() {
    let (bundle, folder) = packed();
    let copy = unpack(&folder.path().join("b.kiln"), &folder.path().join("copy")).expect("a bundle");
    assert_eq!(copy.manifest(), bundle.manifest());
    copy.verify().expect("every digest");
}

#[test]
fn bundles_inside_a_bundle_come_along() {
    let family = Family::new("controlnet");
    let bundle = family.bundle();
    let folder = scratch();
    let file = folder.path().join("b.kiln");
    pack(&bundle, &file, 1).expect("packed");
    let copy = unpack(&file, &folder.path().join("copy")).expect("a bundle");
    let nested = Bundle::open(copy.path("controlnet")).expect("the ControlNet");
    nested.verify().expect("every digest");
}

#[test]
fn nothing_is_written_that_the_manifest_does_not_list() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let (bundle, folder) = packed();
    let manifest = fs::read(bundle.root().join("bundle.yaml")).expect("a manifest");
    let listed = fs::read(bundle.path("scheduler_config.json")).expect("a file");
    let file = folder.path().join("evil.kiln");
    let check = |members: &[Member<'_>], message: &str| {
        archive(&file, members);
        let error = unpack(&file, &folder.path().join("out")).expect_err("refused").to_string();
        assert!(error.contains(message), "{error}");
        assert!(!folder.path().join("out").exists(), "{message}");
        assert!(!folder.path().join("escaped").exists());
    };
    check(&[], "lacks 'bundle.yaml'");
    check(&[("unet.data", Regular, b"x")], "'unet.data', which no manifest before it lists");
    check(&[("bundle.yaml", Regular, b"format: 5")], "missing field");
    check(&[("bundle.yaml", Symlink, b"")], "not a regular file");
    let first = ("bundle.yaml", Regular, manifest.as_slice());
    check(&[first], "lacks '");
    check(&[first, first], "'bundle.yaml', which no manifest before it lists");
    for name in ["../escaped", "/tmp/escaped", "a/../../escaped", "other"] {
        check(&[first, (name, Regular, b"x")], "which no manifest before it lists");
    }
    let name = "scheduler_config.json";
    for kind in [Directory, Link, Symlink] {
        check(&[first, (name, kind, b"")], "not a regular file");
    }
    check(&[first, (name, Regular, &[&listed[..], b" "].concat())], "has more than");
    check(&[first, (name, Regular, &listed[1..])], "does not match the digest");
    let mut spoilt = listed.clone();
    spoilt[0] ^= 1;
    check(&[first, (name, Regular, &spoilt)], "does not match the digest");
    fs::write(&file, b"no archive").expect("a file");
    let error = unpack(&file, &folder.path().join("out")).expect_err("refused").to_string();
    assert!(error.contains("is not a packed bundle"), "{error}");
}

#[test]
fn a_manifest_that_lists_names_outside_is_refused() {
    let (bundle, folder) = packed();
    let manifest = fs::read_to_string(bundle.root().join("bundle.yaml")).expect("a manifest");
    let evil = manifest.replace("files:\n", "files:\n  ../escaped: {size: 1, blake3: ''}\n");
    assert_ne!(evil, manifest);
    let file = folder.path().join("evil.kiln");
    archive(&file, &[("bundle.yaml", tar::EntryType::Regular, evil.as_bytes())]);
    let error = unpack(&file, &folder.path().join("out")).expect_err("refused").to_string();
    assert!(error.contains("'../escaped' lies outside the bundle"), "{error}");
}

#[test]
fn extension_headers_are_not_read_into_memory() {
    let folder = scratch();
    let file = folder.path().join("bomb.kiln");
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader, tar::EntryType::GNULongLink] {
        archive(
            &file,
            &[("././@LongLink", kind, &vec![b'a'; 1 << 20]), ("bundle.yaml", tar::EntryType::Regular, b"")],
        );
        let error = unpack(&file, &folder.path().join("out")).expect_err("refused").to_string();
        assert!(error.contains("'././@LongLink', which no manifest before it lists"), "{error}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn a_file_ends_where_the_archive_does() {
    let (_, folder) = packed();
    let file = folder.path().join("b.kiln");
    let whole = fs::read(&file).expect("a file");
    for more in [b"garbage".as_slice(), whole.as_slice()] {
        fs::write(&file, [&whole, more].concat()).expect("a file");
        unpack(&file, &folder.path().join("out")).expect_err("refused");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn an_archive_may_be_filled_up_to_a_block_but_not_without_end() {
    let (_, folder) = packed();
    let file = folder.path().join("b.kiln");
    let whole = fs::read(&file).expect("a file");
    let with_zeros = |n: usize| {
        let zeros = zstd::encode_all(vec![0; n].as_slice(), 1).expect("zstd");
        fs::write(&file, [&whole, zeros.as_slice()].concat()).expect("a file");
        unpack(&file, &folder.path().join(n.to_string()))
    };
    with_zeros(20 * 512).expect("a bundle");
    let error = with_zeros(16 << 20).expect_err("refused").to_string();
    assert!(error.ends_with("goes on after its end"), "{error}");
}

#[test]
fn a_truncated_file_is_refused_at_any_length() {
    let (_, folder) = packed();
    let whole = fs::read(folder.path().join("b.kiln")).expect("a file");
    let file = folder.path().join("short.kiln");
    for i in 0..12 {
        fs::write(&file, &whole[..i * whole.len() / 12]).expect("a file");
        unpack(&file, &folder.path().join("out")).expect_err("refused");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn bundles_travel_by_commands() {
    let (model, work) = (tiny(), scratch());
    let model = model.path().display().to_string();
    let bundle = succeed(&mut kiln(&["compile", &model, "--no-reference"], work.path()));
    succeed(&mut kiln(&["bundle", "pack", bundle.trim(), "--out", "b.kiln"], work.path()));
    assert_eq!(succeed(&mut kiln(&["bundle", "unpack", "b.kiln", "--out", "copy"], work.path())), "copy\n");
    succeed(&mut kiln(&["inspect", "copy", "--verify"], work.path()));
    fail(
        &mut kiln(&["bundle", "unpack", "b.kiln", "--out", "copy"], work.path()),
        2,
        "exists and is not empty",
    );
    fail(&mut kiln(&["bundle", "unpack", "none", "--out", "x"], work.path()), 3, "none: no such file");
    fail(&mut kiln(&["bundle", "pack", "copy", "--out", "no/b.kiln"], work.path()), 2, "no: no such folder");
    let level = ["bundle", "pack", "copy", "--out", "c.kiln", "--level", "20"];
    fail(&mut kiln(&level, work.path()), 2, "level: 20 is not a number from 1 to 19");
}
