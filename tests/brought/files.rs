//! Which of several files is read.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{UNET, draw, halved, model, rewrite};
use crate::cli::{fail, kiln, succeed};
use crate::fixtures::scratch;

/// Replaces a component's file by two shards and an index of a name.
fn shard(file: &Path, index: &str, suffix: &str) {
    let base = file.file_name().expect("a name").to_string_lossy().replace(".safetensors", "");
    let shards = [1, 2].map(|i| format!("{base}-0000{i}-of-00002{suffix}.safetensors"));
    let mut map = serde_json::Map::new();
    let bytes = fs::read(file).expect("weights");
    let names = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    for (i, name) in names.names().into_iter().enumerate() {
        map.insert(name.into(), shards[i % 2].clone().into());
    }
    for shard in &shards {
        let keep = |name: &str| (map[name] == json!(shard)).then(|| name.to_owned());
        rewrite(file, &file.with_file_name(shard), keep, <[u8]>::to_vec);
    }
    fs::write(file.with_file_name(index), json!({ "metadata": {}, "weight_map": map }).to_string())
        .expect("an index");
}

fn same(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn of_shards_and_a_whole_file_diffusers_reads_the_shards_and_transformers_the_file() {
    let whole = model();
    let expected = draw(whole.path());
    let stale = model();
    let unet = stale.path().join(UNET);
    shard(&unet, "diffusion_pytorch_model.safetensors.index.json", "");
    rewrite(&whole.path().join(UNET), &unet, same, halved);
    let text = stale.path().join("text_encoder/model.safetensors");
    let copy = scratch();
    rewrite(&text, &copy.path().join("model.safetensors"), same, halved);
    shard(&copy.path().join("model.safetensors"), "model.safetensors.index.json", "");
    for entry in fs::read_dir(copy.path()).expect("a folder").flatten() {
        if entry.file_name() != "model.safetensors" {
            fs::copy(entry.path(), text.with_file_name(entry.file_name())).expect("a copy");
        }
    }
    assert_eq!(draw(stale.path()), expected);
    let remarks = kiln_compile::Checkpoint::open(stale.path()).expect("a checkpoint").remarks();
    let told = |part: &str| remarks.iter().any(|remark| remark.contains(part));
    assert!(told("index.json is read, not diffusion_pytorch_model.safetensors"), "{remarks:?}");
    assert!(told("model.safetensors is read, not model.safetensors.index.json"), "{remarks:?}");
}

#[test]
fn indices_of_variants_have_two_names() {
    let plain = model();
    for index in [
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.fp16.index.json",
    ] {
        let folder = model();
        let unet = folder.path().join(UNET);
        shard(&unet, index, ".fp16");
        fs::remove_file(&unet).expect("gone");
        let error = kiln_compile::Checkpoint::open(folder.path()).expect_err("no plain weights");
        assert!(error.hint().is_some_and(|hint| hint.ends_with("--variant fp16")), "{error:?}");
        let (work, path) = (scratch(), folder.path().display().to_string());
        let plain = plain.path().display().to_string();
        let args = |model: &str, out: &str, variant: &'static [&'static str]| {
            let args = ["generate", "x", "--model", model, "--steps", "1", "--seed", "1", "--out", out];
            succeed(&mut kiln(&[&args[..], variant].concat(), work.path()));
        };
        args(&path, "a.png", &["--variant", "fp16"]);
        args(&plain, "b.png", &[]);
        succeed(&mut kiln(&["compare", "a.png", "b.png", "--max-difference", "0"], work.path()));
    }
}

#[test]
fn repositories_of_a_hub_cache_are_opened_by_their_main_snapshot() {
    let (plain, cache) = (model(), scratch());
    let repository = cache.path().join("models--org--small");
    let snapshot = repository.join("snapshots/0123456789abcdef");
    crate::fixtures::copy_folder(plain.path(), &snapshot);
    fs::create_dir(repository.join("refs")).expect("a folder");
    fs::write(repository.join("refs/main"), "0123456789abcdef\n").expect("a file");
    let checkpoint = kiln_compile::Checkpoint::open(&repository).expect("a checkpoint");
    assert_eq!(checkpoint.name(), "small");
    assert_eq!(draw(&repository), draw(plain.path()));
    fs::write(repository.join("refs/main"), "../..").expect("a file");
    let (work, path) = (scratch(), repository.display().to_string());
    fail(&mut kiln(&["compile", &path], work.path()), 3, "names '../..', which is not among the snapshots");
    let hint = fail(&mut kiln(&["compile", "org/small"], work.path()), 3, "org/small: no such folder");
    assert!(String::from_utf8_lossy(&hint.stderr).contains("kiln downloads no models"));
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_called_so() {
    let folder = model();
    let unet = folder.path().join(UNET);
    fs::remove_file(&unet).expect("gone");
    std::os::unix::fs::symlink("../../blobs/0", &unet).expect("a link");
    let error = kiln_compile::Checkpoint::open(folder.path()).expect_err("no weights");
    assert!(
        error.to_string().ends_with("diffusion_pytorch_model.safetensors: is a link to nothing"),
        "{error}"
    );
}
