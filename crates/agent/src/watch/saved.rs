//! What a restart of the agent needs: the bytes of each connection that were counted, kept in step with the spool.
//!
//! ```text
//! DIR/lock            held by the agent that uses the directory
//! DIR/counted         the bytes of each connection that are in reports
//! DIR/counted.next    the same, including the report that is being stored
//! DIR/ended-NUMBER    connections that ended since report NUMBER, as [`ended`] has them
//! DIR/spool/          the reports that the service has not accepted yet
//! ```
//!
//! A report is stored in three steps: `counted.next`, which names the report's key; the report, in the spool; and the
//! renaming of `counted.next`. The report is not sent before. So after a crash, the spool tells whether the report was
//! stored, and its bytes are counted once: either they are in it, or they are counted again from the kernel's counters.
//!
//! The kernel forgets a socket when it has sent the message about its end. So the last bytes of a connection are
//! appended to `ended-NUMBER` as soon as they are known. This file is not synced: after a power failure, there are no
//! sockets either, and what was not in a report is lost.

use std::collections::HashMap;
use std::fs::{self, TryLockError};
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use flow::Counters;
use serde::{Deserialize, Serialize};

use super::destinations::{Waited, Waiter};
use super::ended::{self, EndedFile};
use crate::delivery::spool_holds;
use crate::durable::{self, DirLock, OutOfSpace};

pub(super) use super::ended::Ended;

/// The format of the files. Version 1 had nothing that waits; up to version 2, `ended-NUMBER` had lines.
const VERSION: u32 = 3;
const VERSIONS: RangeInclusive<u32> = 1..=VERSION;

/// A socket: the inode of its network namespace, and its cookie. Unique until the system restarts.
pub(super) type SocketId = (u64, u64);

/// The content of `counted`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counted {
    version: u32,
    /// The system's start. After another one, all sockets are new.
    boot_id: String,
    /// The report whose bytes are the last ones in it, and its idempotency key.
    report: u64,
    key: String,
    /// Network namespace, cookie, bytes sent and received.
    connections: Vec<(u64, u64, u64, u64)>,
    /// Bytes that are counted and not in a report: they wait for the name of their destination.
    #[serde(default)]
    waiting: Vec<(Waiter, Waited)>,
}

/// The error of a directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SavedError {
    #[error("{}: another agent is using this directory; give each its own", .0.display())]
    InUse(PathBuf),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "{}: this is not a state of this agent: {why}; move it away, and bytes of connections that are open now \
         may count again", path.display()
    )]
    Unreadable { path: PathBuf, why: String },
}

impl SavedError {
    /// Whether there was no room: on the disk, in the user's quota, or for a file of this size.
    pub(super) fn is_out_of_space(&self) -> bool {
        match self {
            SavedError::Io { error, .. } => OutOfSpace::from_error(error).is_some(),
            SavedError::InUse(_) | SavedError::Unreadable { .. } => false,
        }
    }
}

/// The directory.
#[derive(Debug)]
pub(super) struct Saved {
    dir: PathBuf,
    boot_id: String,
    report: u64,
    ended: Option<EndedFile>,
    _lock: DirLock,
}

/// What was there at the start.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// No agent has used the directory before.
    pub(super) is_first: bool,
    pub(super) counted: HashMap<SocketId, Counters>,
    /// Connections that ended, with the bytes that no report has.
    pub(super) ended: Vec<Ended>,
    /// Bytes that the reports lack, since they wait for a name.
    pub(super) waiting: Vec<(Waiter, Waited)>,
    /// The system was not restarted since, so the times in it are of the same clock.
    pub(super) is_same_boot: bool,
}

impl Saved {
    pub(super) fn spool(dir: &Path) -> PathBuf {
        dir.join("spool")
    }

    /// Opens the directory, and completes or undoes a report that a crash interrupted. Must be called before the
    /// spool is opened.
    pub(super) fn open(dir: &Path, boot_id: String) -> Result<(Saved, Restored), SavedError> {
        let at = |error| SavedError::Io {
            path: dir.to_owned(),
            error,
        };
        durable::create_dir_all(dir).map_err(at)?;
        let lock = DirLock::create(&dir.join("lock")).map_err(|error| match error {
            TryLockError::WouldBlock => SavedError::InUse(dir.to_owned()),
            TryLockError::Error(error) => at(error),
        })?;
        let mut saved = Saved {
            dir: dir.to_owned(),
            boot_id,
            report: 0,
            ended: None,
            _lock: lock,
        };
        if let Some(next) = read(&saved.next())? {
            match spool_holds(&Saved::spool(dir), &next.key).map_err(at)? {
                true => durable::rename(&saved.next(), &saved.counted()).map_err(at)?,
                false => fs::remove_file(saved.next()).map_err(at)?,
            }
        }
        let counted = read(&saved.counted())?;
        let is_first = counted.is_none();
        let mut counted = counted.unwrap_or_default();
        if !is_first && counted.version < VERSION {
            // An agent of before would take what this one notes for damage. Without room, nothing can be noted either.
            counted.version = VERSION;
            match write(&saved.counted(), &counted) {
                Err(error) if error.is_out_of_space() => {}
                written => written?,
            }
        }
        saved.report = counted.report;
        saved.remove_other_ended().map_err(at)?;
        let connections = counted.connections.into_iter();
        let mut restored = Restored {
            is_first,
            counted: connections
                .map(|(namespace, cookie, tx, rx)| ((namespace, cookie), Counters { tx, rx }))
                .collect(),
            // Also those from before a restart of the system: their bytes were sent.
            ended: ended::read(&saved.ended_path(saved.report)).map_err(at)?,
            waiting: counted.waiting,
            is_same_boot: counted.boot_id == saved.boot_id,
        };
        restored.subtract_counted();
        if !restored.is_same_boot {
            restored.counted.clear();
        }
        Ok((saved, restored))
    }

    /// Stores what was carried before the first start of an agent, and is not counted.
    pub(super) fn begin(
        &mut self,
        counted: impl Iterator<Item = (SocketId, Counters)>,
    ) -> Result<(), SavedError> {
        self.prepare("", counted, Vec::new())?;
        let at = |error| SavedError::Io {
            path: self.counted(),
            error,
        };
        let completed = durable::rename(&self.next(), &self.counted());
        completed.map_err(at)?;
        self.report += 1;
        Ok(())
    }

    /// Notes connections that have ended, in case that this process ends before the next report.
    pub(super) fn note_ended(&mut self, ended: &[Ended]) -> Result<(), SavedError> {
        if ended.is_empty() {
            return Ok(());
        }
        let path = self.ended_path(self.report);
        let noted = match &mut self.ended {
            Some(file) => file.push(ended),
            None => EndedFile::open(&path).and_then(|file| self.ended.insert(file).push(ended)),
        };
        noted.map_err(|error| SavedError::Io { path, error })
    }

    /// Prepares the next report: from its key, the bytes that are counted with it, and those of them that it lacks,
    /// because they wait for a name.
    pub(super) fn prepare(
        &self,
        key: &str,
        counted: impl Iterator<Item = (SocketId, Counters)>,
        waiting: Vec<(Waiter, Waited)>,
    ) -> Result<(), SavedError> {
        let counted = Counted {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            report: self.report + 1,
            key: key.to_owned(),
            connections: counted
                .map(|((namespace, cookie), bytes)| (namespace, cookie, bytes.tx, bytes.rx))
                .collect(),
            waiting,
        };
        write(&self.next(), &counted)
    }

    /// Undoes [`prepare`](Saved::prepare), if the report was not stored.
    pub(super) fn undo(&self) -> Result<(), SavedError> {
        let path = self.next();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(SavedError::Io { path, error })
            }
            _ => Ok(()),
        }
    }

    /// Completes the report that is in the spool now.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        durable::rename(&self.next(), &self.counted())?;
        let before = self.ended_path(self.report);
        self.report += 1;
        self.ended = None;
        match fs::remove_file(before) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn counted(&self) -> PathBuf {
        self.dir.join("counted")
    }

    fn next(&self) -> PathBuf {
        self.dir.join("counted.next")
    }

    fn ended_path(&self, report: u64) -> PathBuf {
        self.dir.join(format!("{ENDED}{report}"))
    }

    fn remove_other_ended(&self) -> io::Result<()> {
        for found in fs::read_dir(&self.dir)? {
            let path = found?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(ENDED) && path != self.ended_path(self.report) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

const ENDED: &str = "ended-";

impl Restored {
    /// Leaves only the bytes that were not counted with the last report.
    fn subtract_counted(&mut self) {
        for ended in &mut self.ended {
            let id = (ended.namespace, ended.cookie);
            let counted = self.counted.remove(&id).unwrap_or_default();
            ended.bytes_tx = ended.bytes_tx.saturating_sub(counted.tx);
            ended.bytes_rx = ended.bytes_rx.saturating_sub(counted.rx);
        }
    }
}

/// Writes `counted` or `counted.next`.
fn write(path: &Path, counted: &Counted) -> Result<(), SavedError> {
    let write = || {
        let json = serde_json::to_vec(counted)?;
        durable::write(path, &path.with_extension("tmp"), &json)
    };
    write().map_err(|error| SavedError::Io {
        path: path.to_owned(),
        error,
    })
}

fn read(path: &Path) -> Result<Option<Counted>, SavedError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| SavedError::Io {
            path: path.to_owned(),
            error,
        })?,
    };
    let unreadable = |why| SavedError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let counted: Counted =
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    match VERSIONS.contains(&counted.version) {
        true => Ok(Some(counted)),
        false => Err(unreadable(format!(
            "its version is {}, not {VERSION}",
            counted.version
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::net::SocketAddr;

    use super::super::clock::Span;
    use super::super::ended::EndedWaits;
    use super::*;

    const SOCKET: SocketId = (1, 2);

    fn ended(cookie: u64, tx: u64) -> Ended {
        Ended {
            namespace: 1,
            cookie,
            src_app: "a".into(),
            dest_app: "b".into(),
            hour: 7,
            bytes_tx: tx,
            bytes_rx: 0,
            waits: None,
        }
    }

    fn store(saved: &Saved, key: &str) {
        let counted = [(SOCKET, Counters { tx: 10, rx: 20 })];
        saved.prepare(key, counted.into_iter(), Vec::new()).unwrap();
    }

    /// As the spool does it.
    fn put_into_spool(dir: &Path, key: &str) {
        fs::create_dir_all(Saved::spool(dir)).unwrap();
        fs::write(
            Saved::spool(dir).join(format!("0000000000000000-{key}-1.json")),
            "[]",
        )
        .unwrap();
    }

    #[test]
    fn a_report_that_is_not_in_the_spool_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert!(restored.is_first && restored.counted.is_empty());
        saved.note_ended(&[ended(3, 5)]).unwrap();
        store(&saved, "k1");
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert!(restored.counted.is_empty());
        assert_eq!(restored.ended, [ended(3, 5)]);
    }

    #[test]
    fn a_report_that_is_in_the_spool_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::open(dir.path(), "boot".into()).unwrap();
        saved.note_ended(&[ended(3, 5)]).unwrap();
        store(&saved, "k1");
        put_into_spool(dir.path(), "k1");
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(restored.counted[&SOCKET], Counters { tx: 10, rx: 20 });
        assert_eq!(restored.ended, []);
    }

    #[test]
    fn an_end_counts_what_no_report_has() {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::open(dir.path(), "boot".into()).unwrap();
        store(&saved, "k1");
        saved.complete().unwrap();
        saved.note_ended(&[ended(SOCKET.1, 15)]).unwrap();
        // Cut by a crash.
        let mut file = File::options()
            .append(true)
            .open(saved.ended_path(1))
            .unwrap();
        file.write_all(&[0xe5, 90, 0, 0, 0, 7]).unwrap();
        drop(saved);
        for _ in 0..2 {
            let (mut saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
            assert_eq!(restored.ended[0], ended(SOCKET.1, 5));
            assert!(restored.counted.is_empty());
            saved.note_ended(&[ended(8, 1)]).unwrap();
        }
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(
            restored.ended,
            [ended(SOCKET.1, 5), ended(8, 1), ended(8, 1)]
        );
    }

    #[test]
    fn the_first_start_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::open(dir.path(), "boot".into()).unwrap();
        let bytes = Counters { tx: 10, rx: 20 };
        saved.begin([(SOCKET, bytes)].into_iter()).unwrap();
        saved.note_ended(&[ended(3, 5)]).unwrap();
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert!(!restored.is_first);
        assert_eq!(restored.counted[&SOCKET], bytes);
        assert_eq!(restored.ended, [ended(3, 5)]);
    }

    #[test]
    fn sockets_do_not_survive_a_restart_of_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::open(dir.path(), "boot".into()).unwrap();
        store(&saved, "k1");
        saved.complete().unwrap();
        saved.note_ended(&[ended(9, 5)]).unwrap();
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "other boot".into()).unwrap();
        assert!(restored.counted.is_empty());
        assert_eq!(restored.ended, [ended(9, 5)]);
    }

    /// As agents before the directory have written it.
    #[test]
    fn a_state_of_version_1_is_read_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        let counted = "{\"version\":1,\"boot_id\":\"boot\",\"report\":4,\"key\":\"k\",\"connections\":[[1,2,10,20]]}";
        fs::write(dir.path().join("counted"), counted).unwrap();
        let ended = "{\"namespace\":1,\"cookie\":3,\"src_app\":\"a\",\"dest_app\":\"b\",\"hour\":7,\"bytes_tx\":5,\"bytes_rx\":0}\n";
        fs::write(dir.path().join("ended-4"), ended).unwrap();
        let (mut saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(restored.counted[&SOCKET], Counters { tx: 10, rx: 20 });
        assert_eq!(restored.ended, [self::ended(3, 5)]);
        assert!(restored.waiting.is_empty() && restored.is_same_boot);
        // Those agents refuse it from now on.
        let counted = fs::read_to_string(dir.path().join("counted")).unwrap();
        assert!(counted.contains("\"version\":3"), "{counted}");
        saved.note_ended(&[self::ended(4, 6)]).unwrap();
        drop(saved);
        let (mut saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(restored.ended, [self::ended(3, 5), self::ended(4, 6)]);
        // With the next report, its lines are gone.
        store(&saved, "k2");
        saved.complete().unwrap();
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(restored.ended, []);
        assert!(!dir.path().join("ended-4").exists());
    }

    /// As agents have written it until ends were noted in batches.
    #[test]
    fn a_state_of_version_2_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let waited = "{\"remote\":\"10.0.0.7:80\",\"since\":5,\"moments\":[{\"from\":3,\"to\":4}],\"bytes\":[[\"a\",7,1,2]]}";
        let counted = format!(
            "{{\"version\":2,\"boot_id\":\"boot\",\"report\":4,\"key\":\"k\",\"connections\":[[1,2,10,20]],\
             \"waiting\":[[{{\"Socket\":[1,2]}},{waited}]]}}"
        );
        fs::write(dir.path().join("counted"), counted).unwrap();
        let ended = "{\"namespace\":1,\"cookie\":2,\"src_app\":\"a\",\"dest_app\":\"\",\"hour\":7,\"bytes_tx\":15,\"bytes_rx\":20,\
             \"waits\":{\"remote\":\"10.0.0.7:80\",\"heard\":{\"from\":3,\"to\":4}}}\n";
        fs::write(dir.path().join("ended-4"), ended).unwrap();
        let (_saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        let remote: SocketAddr = "10.0.0.7:80".parse().unwrap();
        let heard = Span { from: 3, to: 4 };
        let waited = (Waiter::Socket(SOCKET), Waited::example(remote, heard));
        assert_eq!(restored.waiting, [waited]);
        let ended = Ended {
            dest_app: "".into(),
            waits: Some(EndedWaits { remote, heard }),
            ..self::ended(2, 5)
        };
        assert_eq!(restored.ended, [ended]);
    }

    #[test]
    fn what_waits_is_stored_with_the_report() {
        use super::super::destinations::Waited;

        let dir = tempfile::tempdir().unwrap();
        let (mut saved, _) = Saved::open(dir.path(), "boot".into()).unwrap();
        let remote: SocketAddr = "10.0.0.7:80".parse().unwrap();
        let heard = Span { from: 3, to: 4 };
        let waiters = [
            Waiter::Socket(SOCKET),
            Waiter::Ended {
                src_app: "a".into(),
                remote,
                tenth: 7,
            },
        ];
        let waiting: Vec<(Waiter, Waited)> = waiters
            .map(|waiter| (waiter, Waited::example(remote, heard)))
            .to_vec();
        saved.prepare("k", [].into_iter(), waiting.clone()).unwrap();
        saved.complete().unwrap();
        let waits = EndedWaits { remote, heard };
        let ended = Ended {
            dest_app: "".into(),
            waits: Some(waits),
            ..ended(9, 5)
        };
        saved.note_ended(std::slice::from_ref(&ended)).unwrap();
        drop(saved);
        let (saved, restored) = Saved::open(dir.path(), "boot".into()).unwrap();
        assert_eq!(restored.waiting, waiting);
        assert_eq!(restored.ended, [ended]);
        drop(saved);
        let (_saved, restored) = Saved::open(dir.path(), "other boot".into()).unwrap();
        assert_eq!(restored.waiting, waiting);
        assert!(!restored.is_same_boot);
    }

    #[test]
    fn a_foreign_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, why) in [
            ("x", "expected value"),
            ("{\"version\":1}", "missing field"),
            (
                "{\"version\":4,\"boot_id\":\"b\",\"report\":1,\"key\":\"k\",\"connections\":[]}",
                "its version is 4",
            ),
        ] {
            fs::write(dir.path().join("counted"), content).unwrap();
            let error = Saved::open(dir.path(), "boot".into())
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
