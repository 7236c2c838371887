use std::sync::Arc;
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
    let spec = Spec { model: "shapes".into(), loras: Vec::new(), request };
    let idempotency_key = key.map(str::to_owned);
    Record { idempotency_key, ..Record::new(JobId::random(), spec, ClientId("ann".into())) }
}

fn open(folder: &TempDir) -> Store {
    Store::open(folder.path()).expect("a store")
}

fn n_files(folder: &TempDir) -> usize {
    std::fs::read_dir(folder.path().join("pictures")).expect("a folder").count()
}

/// Writes any text in the place of a record.
fn put_text(store: &Store, id: &JobId, text: &serde_json::Value) {
    let put = |transaction: &redb::WriteTransaction| {
        transaction.open_table(JOBS)?.insert(id.as_str(), text.to_string().as_bytes())?;
        Ok(())
    };
    store.write(put).expect("a record");
}

/// Writes a record as versions without numbers did, pictures and all.
fn put_whole(store: &Store, record: &Record) {
    let mut old = serde_json::to_value(record).expect("JSON");
    ["version", "sequence", "digest", "begun"].iter().for_each(|key| drop(old[key].take()));
    let fields = old.as_object_mut().expect("an object");
    fields.retain(|_, value| !value.is_null());
    put_text(store, &record.id, &old);
}

/// A file on a disk that can be full.
#[derive(Debug)]
struct Disk(redb::backends::FileBackend, Arc<AtomicBool>);

impl Disk {
    fn check(&self) -> std::io::Result<()> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.set_len(len))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check().and_then(|()| self.0.write(offset, data))
    }

    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}

/// A store on a disk that is full while the flag is set.
pub(crate) fn on_small_disk(folder: &TempDir) -> (Store, Arc<AtomicBool>) {
    let is_full = Arc::new(AtomicBool::new(false));
    let (path, flag) = (folder.path().join("jobs.redb"), is_full.clone());
    let opener = move || {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let disk = Disk(redb::backends::FileBackend::new(file)?, flag.clone());
        redb::Database::builder().create_with_backend(disk)
    };
    (Store::open_with(folder.path(), Box::new(opener)).expect("a store"), is_full)
}

#[test]
fn pictures_lie_in_files_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let sent = record(None);
    assert_eq!(store.add(sent.clone()).expect("a job"), Added::New);
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
    assert_eq!(store.add(first.clone()).expect("a job"), Added::New);
    assert_eq!(store.add(second).expect("a job"), Added::Known(first.id.clone()));
    assert_eq!(n_files(&folder), 3);
    store.delete(&first.id).expect("a store");
    assert_eq!(store.add(record(Some("k"))).expect("a job"), Added::New);
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
    put_text(&store, &unreadable.id, &serde_json::json!({ "later": 1 }));
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
    assert!(store.spec(kept).is_ok() && store.get(&unreadable.id).expect("a store").is_some());
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

#[test]
fn a_store_on_a_full_disk_works_again_when_there_is_space() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, is_full) = on_small_disk(&folder);
    let (first, second) = (record(None), record(None));
    store.add(first.clone()).expect("a job");
    is_full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(store.add(second.clone()).is_err() && store.end(&first.id, Ending::Cancelled).is_err());
    }
    assert!(!store.is_sound() && store.probe().is_err());
    assert_eq!(n_files(&folder), 3, "of the first job alone");
    is_full.store(false, Ordering::SeqCst);
    store.probe().expect("space");
    assert!(store.is_sound());
    assert_eq!(store.add(second.clone()).expect("a job"), Added::New);
    store.end(&first.id, Ending::Cancelled).expect("an end");
    let ends: Vec<_> = store.all().expect("records").into_iter().map(|record| record.ending).collect();
    assert_eq!(ends, [Ending::Cancelled, Ending::Open]);
}

#[test]
fn jobs_that_end_the_process_while_they_are_drawn_are_given_up_and_no_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let (deadly, waiting, pardoned) = (record(None), record(None), record(None));
    for job in [&waiting, &pardoned, &deadly] {
        open(&folder).add(job.clone()).expect("a job");
    }
    for _ in 0..3 {
        let store = open(&folder);
        assert_eq!(store.reopen().expect("a store").len(), 3);
        store.begin(&deadly.id).expect("a store");
        store.begin(&pardoned.id).expect("a store");
        store.pardon(&pardoned.id).expect("a store");
    }
    let store = open(&folder);
    let left: Vec<_> = store.reopen().expect("a store").into_iter().map(|record| record.id).collect();
    assert_eq!(left, [pardoned.id, waiting.id], "begun jobs come first");
    let ending = store.get(&deadly.id).expect("a store").expect("a record").ending;
    assert!(matches!(ending, Ending::Failed { fault } if fault.kind == FaultKind::Interrupted));
}

#[test]
fn jobs_come_back_in_the_order_in_which_they_came() {
    let folder = tempfile::tempdir().expect("a folder");
    let jobs: Vec<Record> = (0..20).map(|_| record(None)).collect();
    let ids = |records: &[Record]| records.iter().map(|record| record.id.clone()).collect::<Vec<_>>();
    let store = open(&folder);
    jobs.iter().for_each(|job| drop(store.add(job.clone()).expect("a job")));
    drop(store);
    let store = open(&folder);
    assert_eq!(ids(&store.reopen().expect("a store")), ids(&jobs));
    let newest = store.newest(&ClientId("ann".into()), u64::MAX, 3).expect("a store");
    assert_eq!(ids(&newest), [&jobs[19], &jobs[18], &jobs[17]].map(|job| job.id.clone()));
    let next = store.newest(&ClientId("ann".into()), newest[2].sequence, 100).expect("a store");
    assert_eq!((next.len(), &next[0].id), (17, &jobs[16].id));
    assert_eq!(store.newest(&ClientId("an".into()), u64::MAX, 3).expect("a store"), Vec::new());
}

#[test]
fn a_key_belongs_to_one_body() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let with = |digest: &str| Record { digest: Some(digest.into()), ..record(Some("k")) };
    let first = with("a");
    assert_eq!(store.add(first.clone()).expect("a job"), Added::New);
    assert_eq!(store.add(with("a")).expect("a job"), Added::Known(first.id));
    assert_eq!(store.add(with("b")).expect("a job"), Added::Reused);
    assert_eq!(n_files(&folder), 3);
}

#[test]
fn a_job_of_another_version_is_shown_as_failed_and_can_be_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    let (newer, torn) = (record(Some("k")), record(None));
    let store = open(&folder);
    for job in [&newer, &torn] {
        store.add(job.clone()).expect("a job");
    }
    let mut text = serde_json::to_value(store.get(&newer.id).expect("a store")).expect("JSON");
    text["version"] = (VERSION + 1).into();
    put_text(&store, &newer.id, &text);
    put_text(&store, &torn.id, &serde_json::json!({ "client": "ann", "spec": { "model": "m", "later": 1 } }));
    drop(store);
    let store = open(&folder);
    assert!(store.reopen().expect("a store").is_empty());
    let shown = store.newest(&ClientId("ann".into()), u64::MAX, 9).expect("a store");
    assert!(shown.iter().all(|job| matches!(job.ending, Ending::Failed { .. }) && job.ended.is_some()));
    let models: HashSet<&str> = shown.iter().map(|job| &*job.spec.model).collect();
    assert_eq!(models, HashSet::from(["shapes", "m"]));
    assert_eq!(store.prune(Retention { age: Duration::ZERO, bytes: 0 }).expect("a store"), 0);
    assert_eq!(n_files(&folder), 6);
    store.delete(&newer.id).expect("a store");
    assert_eq!(n_files(&folder), 3);
    assert_eq!(store.add(record(Some("k"))).expect("a job"), Added::New);
    store.delete(&torn.id).expect("a store");
    assert_eq!(n_files(&folder), 3);
}

#[test]
fn pictures_of_jobs_that_fail_or_are_forgotten_leave_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(&folder);
    let (failed, forgotten) = (record(None), record(None));
    for job in [&failed, &forgotten] {
        store.add(job.clone()).expect("a job");
        store.save(&job.id, 0, &picture(8, 3), "").expect("a picture");
    }
    store.end(&failed.id, Ending::Cancelled).expect("an end");
    assert_eq!(n_files(&folder), 3 + 4);
    store.delete(&forgotten.id).expect("a store");
    store.save(&forgotten.id, 0, &picture(8, 3), "").expect("a picture");
    store.end(&forgotten.id, Ending::Done { pictures: 1, infotexts: Vec::new() }).expect("an end");
    assert_eq!(n_files(&folder), 3);
}
