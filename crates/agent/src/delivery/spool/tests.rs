use super::*;

fn meta(key: &str) -> BatchMeta {
    BatchMeta {
        key: key.into(),
        notes: String::new(),
        if_late: None,
        is_keyed: false,
        flows: 3,
        compressed: key.len().is_multiple_of(2),
    }
}

fn first(spool: &mut Spool) -> Option<(BatchMeta, Vec<u8>)> {
    let first = spool.first().unwrap()?;
    Some((first.meta, first.body.unwrap()))
}

#[test]
fn a_spool_survives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool");
    let most = 2 * BLOCK_BYTES;
    let mut spool = Spool::open(&path, most).unwrap();
    assert_eq!(spool.reserve(10).unwrap(), None);
    assert_eq!(spool.push(meta("a"), b"one").unwrap(), None);
    assert_eq!(spool.push(meta("bb"), b"twotwotwo").unwrap(), None);
    assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
    assert!(Spool::open(&path, most).is_err(), "it is in use");
    spool.pop().unwrap();
    drop(spool);
    fs::write(path.join("tmp"), "half").unwrap();

    let mut spool = Spool::open(&path, most).unwrap();
    assert_eq!((spool.len(), spool.reserve(1).unwrap()), (1, None));
    assert_eq!(first(&mut spool), Some((meta("bb"), b"twotwotwo".to_vec())));
    spool.push(meta("ccc"), b"3").unwrap();
    spool.pop().unwrap();
    assert_eq!(first(&mut spool), Some((meta("ccc"), b"3".to_vec())));
    spool.pop().unwrap();
    assert_eq!(first(&mut spool), None);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the lock");
}

#[test]
fn an_unfinished_flow_survives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(spool.unfinished_text().unwrap(), b"");
    spool.set_unfinished_text(b"half").unwrap();
    spool.set_unfinished_text(b"{\"src_").unwrap();
    drop(spool);
    fs::write(dir.path().join("unfinished.tmp"), "of a crash").unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(
        (spool.len(), spool.unfinished_text().unwrap()),
        (0, b"{\"src_".to_vec())
    );
    for _ in 0..2 {
        spool.set_unfinished_text(b"").unwrap();
    }
    assert_eq!(spool.unfinished_text().unwrap(), b"");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the lock");
}

/// Each read is stored in room that was reserved before it.
#[test]
fn room_is_reserved_for_the_next_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    let length = |name: &str| fs::metadata(dir.path().join(name)).map_or(0, |data| data.len());
    assert_eq!(spool.reserve_ahead(10_000, 5_000).unwrap(), None);
    assert!(length("ahead.tmp") >= 10_000 && length("unfinished.tmp") >= 5_000);
    spool.push(meta("a"), b"one").unwrap();
    assert!(length("ahead.tmp") >= 10_000, "a batch does not use it");
    spool.use_ahead(12_000).unwrap();
    assert!(length("ahead.tmp") == 0 && length("tmp") >= 12_000);
    spool.set_unfinished_text(b"part").unwrap();
    assert_eq!((length("unfinished"), length("unfinished.tmp")), (4, 0));
    spool.reserve_ahead(1, 1).unwrap();
    spool.release();
    for name in ["tmp", "ahead.tmp", "unfinished.tmp"] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_batch_is_split() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    spool.push(meta("a"), b"[1,2,3]").unwrap();
    spool.push(meta("bb"), b"two").unwrap();
    let part = |flows| BatchMeta { flows, ..meta("a") };
    let why = |path: &Path| format!("because of {}", path.display());
    let aside = spool.add_refused(&part(1), b"[2]", why).unwrap().unwrap();
    assert_eq!(fs::read(&aside).unwrap(), b"[2]");
    assert!(aside.with_extension("txt").exists());
    assert_eq!(spool.replace_first(part(2), b"[1,3]").unwrap(), None);
    assert_eq!(first(&mut spool), Some((part(2), b"[1,3]".to_vec())));
    drop(spool);
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    assert_eq!(spool.len(), 2);
    assert_eq!(first(&mut spool), Some((part(2), b"[1,3]".to_vec())));
}

/// Refused batches use room until the operator has removed them.
#[test]
fn a_refused_batch_is_moved_aside_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
    spool.push(meta("a"), b"one").unwrap();
    spool.push(meta("bb"), b"two").unwrap();
    let why = |path: &Path| format!("because of {}", path.display());
    let aside = spool.set_aside(why).unwrap().unwrap();
    assert_eq!(fs::read(&aside).unwrap(), b"one");
    let reason = fs::read_to_string(aside.with_extension("txt")).unwrap();
    assert_eq!(reason, why(&aside));
    assert_eq!(first(&mut spool), Some((meta("bb"), b"two".to_vec())));
    assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
    drop(spool);
    let mut spool = Spool::open(dir.path(), 3 * BLOCK_BYTES).unwrap();
    assert_eq!(spool.len(), 1);
    assert_eq!(spool.reserve(1).unwrap(), Some(QueueFull::Bytes));
    fs::remove_dir_all(dir.path().join("refused")).unwrap();
    assert_eq!(spool.reserve(1).unwrap(), None);
}

#[test]
fn a_batch_file_that_was_removed_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    for key in ["a", "bb", "c"] {
        spool.push(meta(key), b"x").unwrap();
    }
    fs::remove_file(dir.path().join(name(0, &meta("a")))).unwrap();
    assert_eq!(first(&mut spool), Some((meta("bb"), b"x".to_vec())));
    fs::remove_file(dir.path().join(name(1, &meta("bb")))).unwrap();
    spool.pop().unwrap();
    assert_eq!(first(&mut spool), Some((meta("c"), b"x".to_vec())));
}

#[test]
fn a_batch_is_moved_to_the_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    for key in ["a", "bb", "c"] {
        spool.push(meta(key), key.as_bytes()).unwrap();
    }
    spool.move_to_back().unwrap();
    drop(spool);
    let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
    for key in ["bb", "c", "a"] {
        assert_eq!(first(&mut spool), Some((meta(key), key.into())));
        spool.pop().unwrap();
    }
}

#[test]
fn a_directory_with_other_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "").unwrap();
    let error = Spool::open(dir.path(), 10).unwrap_err().to_string();
    assert!(error.contains("thesis.txt"), "{error}");
}
