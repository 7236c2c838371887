use std::time::Duration;

use kiln_runtime::{Control, Init, Picture, Request};
use ndarray::Array3;
use tempfile::TempDir;

use super::*;
use crate::ClientId;

fn picture(side: u32, colour: u8) -> RgbImage {
    RgbImage::from_raw(side, side, vec![colour; (side * side * 3) as usize]).expect("a picture")
}

/// A job that starts from three pictures.
fn record(key: Option<&str>) -> Record {
    let mut init = Init::new(picture(64, 1));
    init.mask = Some(Picture::Planar(Array3::from_elem((1, 8, 8), 0.3)));
    init.strength = Some(0.5);
    let mut request = Request::new("a cat").init(init);
    request.controls = vec![Control::new(picture(32, 2))];
    Record {
        id: JobId::random(),
        client: ClientId("ann".into()),
        spec: Spec { model: "shapes".into(), loras: Vec::new(), request },
        idempotency_key: key.map(str::to_owned),
        created: now(),
        ended: None,
        attempts: 0,
        ending: Ending::Open,
    }
}

fn open(folder: &TempDir) -> Store {
    Store::open(folder.path()).expect("a store")
}

fn n_files(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("pictures")).expect("a folder").count()
}

/// Writes a record as it stands, pictures and all.
fn put_whole(store: &Store, record: &Record) {
    store.write(|transaction| put(transaction, record)).expect("a record");
}

#[test]
fn pictures_lie_in_files_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let sent = record(None);
    assert_eq!(store.add(sent.clone()).expect("a job"), None);
    let kept = store.get(&sent.id).expect("a store").expect("a record");
    assert!(serde_json::to_vec(&kept).expect("JSON").len() < 3000);
    assert_eq!(kept.spec.request.init.as_ref().and_then(|init| init.strength), Some(0.5));
    assert_eq!(n_files(&folder), 3);
    drop(store);
    let store = open(&folder);
    assert_eq!(store.spec(kept).expect("pictures"), sent.spec);
    assert_eq!(
        store.source(&sent.id, Source::Init).map(|png| RgbImage::from_bytes(&png).ok()),
        Some(Some(picture(64, 1)))
    );
    store.delete(&sent.id).expect("a store");
    assert_eq!((n_files(&folder), store.all().expect("records")), (0, Vec::new()));
}

#[test]
fn a_job_that_was_sent_before_leaves_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let (first, second) = (record(Some("k")), record(Some("k")));
    assert_eq!(store.add(first.clone()).expect("a job"), None);
    assert_eq!(store.add(second).expect("a job"), Some(first.id.clone()));
    assert_eq!(n_files(&folder), 3);
    store.delete(&first.id).expect("a store");
    assert_eq!(store.add(record(Some("k"))).expect("a job"), None);
}

#[test]
fn records_that_hold_pictures_are_taken_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = record(None);
    put_whole(&open(&folder), &old);
    assert_eq!(n_files(&folder), 0);
    let store = open(&folder);
    assert_eq!(n_files(&folder), 3);
    let left = store.reopen().expect("a store");
    assert_eq!(left.len(), 1);
    assert!(!left[0].clone().holds_pictures());
    assert_eq!(store.spec(left[0].clone()).expect("pictures"), old.spec);
}

#[test]
fn what_a_crash_has_left_is_removed_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let (kept, unreadable) = (record(None), record(None));
    let store = open(&folder);
    store.add(kept.clone()).expect("a job");
    store.save(&kept.id, 0, &picture(8, 3), "").expect("a picture");
    store.end(&kept.id, Ending::Done { pictures: 1, infotexts: Vec::new() }).expect("an end");
    store.add(unreadable.clone()).expect("a job");
    let spoil = |transaction: &redb::WriteTransaction| {
        transaction.open_table(JOBS)?.insert(unreadable.id.as_str(), &b"{\"later\": 1}"[..])?;
        Ok(())
    };
    store.write(spoil).expect("a record");
    drop(store);
    let pictures = folder.path().join("pictures");
    let orphan = JobId::random();
    for name in [format!("{orphan}-init"), format!("{orphan}-0.png"), format!("{}-1.png.part", kept.id)] {
        std::fs::write(pictures.join(name), b"x").expect("a file");
    }
    std::fs::write(pictures.join("holiday-1.png"), b"x").expect("a file");
    let n_known = 3 + 1 + 3 + 1;
    assert_eq!(n_files(&folder), n_known + 3);
    let store = open(&folder);
    assert_eq!(n_files(&folder), n_known);
    assert!(store.spec(kept).is_ok() && store.read_record(unreadable.id.as_str()).expect("a store").is_some());
}

#[test]
fn old_jobs_go_with_all_their_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let job = record(None);
    store.add(job.clone()).expect("a job");
    let size: u64 = job.files().iter().map(|name| store.files.size(name)).sum();
    let retention = |bytes| Retention { age: Duration::from_secs(1000), bytes };
    assert_eq!(store.prune(retention(0)).expect("a store"), 0, "it is open");
    store.end(&job.id, Ending::Cancelled).expect("an end");
    assert_eq!(store.prune(retention(size)).expect("a store"), 0);
    assert_eq!(store.prune(retention(size - 1)).expect("a store"), 1);
    assert_eq!(n_files(&folder), 0);
}

#[test]
fn a_job_whose_picture_is_gone_is_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let job = record(None);
    store.add(job.clone()).expect("a job");
    let name = Source::Mask.file(&job.id);
    std::fs::remove_file(folder.path().join("pictures").join(&name)).expect("a file");
    let kept = store.get(&job.id).expect("a store").expect("a record");
    let error = store.spec(kept).expect_err("a refusal").to_string();
    assert!(error.contains(&name), "{error}");
}
