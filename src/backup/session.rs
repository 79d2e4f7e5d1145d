//! Backup sessions on the service. A session is a checkpoint whose files can be downloaded until the session ends.
//! There is one session at a time.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{BackupError, Manifest, list_files, with_context};
use crate::store::Store;

/// A session ends when nothing has been downloaded from it for this long: its checkpoint keeps files on disk that the
/// service no longer needs.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The backup sessions of a store.
#[derive(Debug)]
pub struct Sessions {
    store: Arc<Store>,
    current: Mutex<Option<Session>>,
}

#[derive(Debug)]
struct Session {
    id: String,
    last_used: Arc<Mutex<Instant>>,
}

impl Session {
    /// Whether nothing was read from it for [`IDLE_TIME_MAX`].
    fn is_idle(&self) -> bool {
        let is_leased = Arc::strong_count(&self.last_used) > 1;
        !is_leased && self.last_used.lock().elapsed() >= IDLE_TIME_MAX
    }

    fn lease(&self) -> Lease {
        Lease(self.last_used.clone())
    }
}

/// Keeps a session from becoming idle while its checkpoint is created or one of its files is read, however slowly.
#[derive(Debug)]
pub struct Lease(Arc<Mutex<Instant>>);

impl Lease {
    /// Ends the lease. The session becomes idle when nothing uses it for [`IDLE_TIME_MAX`] from `last_used` on.
    pub fn end(self, last_used: Instant) {
        *self.0.lock() = last_used;
    }
}

impl Sessions {
    pub fn new(store: Arc<Store>) -> Sessions {
        Sessions {
            store,
            current: Mutex::new(None),
        }
    }

    /// Starts a session: creates a checkpoint and lists its files. Blocks on the disk.
    ///
    /// # Errors
    /// [`BackupError::Busy`] while another session is in use.
    pub fn start(&self) -> Result<Manifest, BackupError> {
        let id = Uuid::now_v7().simple().to_string();
        let session = Session {
            id: id.clone(),
            last_used: Arc::new(Mutex::new(Instant::now())),
        };
        let lease = session.lease();
        let idle = {
            let mut current = self.current.lock();
            if current.as_ref().is_some_and(|c| !c.is_idle()) {
                return Err(BackupError::Busy);
            }
            current.replace(session)
        };
        let removed = idle.map_or(Ok(()), |idle| self.store.remove_checkpoint(&idle.id));
        let checkpoint = removed.and_then(|()| self.store.checkpoint(&id));
        let files = checkpoint
            .map_err(BackupError::from)
            .and_then(|checkpoint| list_files(&checkpoint.path));
        lease.end(Instant::now());
        // The service may have been stopped meanwhile.
        let is_current = self.current.lock().as_ref().is_some_and(|c| c.id == id);
        match files {
            Ok(files) if is_current => Ok(Manifest { id, files }),
            files => {
                let _best_effort = self.store.remove_checkpoint(&id);
                self.current.lock().take_if(|current| current.id == id);
                Err(files.err().unwrap_or(BackupError::Gone))
            }
        }
    }

    /// Opens a file of session `id`. Returns it with its length and with a lease to hold while reading it.
    pub fn open_file(&self, id: &str, name: &str) -> Result<(File, u64, Lease), BackupError> {
        let lease = match self.current.lock().as_ref() {
            Some(current) if current.id == id && super::is_file_name(name) => current.lease(),
            _ => return Err(BackupError::Gone),
        };
        let path = self.store.checkpoint_path(id).join(name);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => BackupError::Gone,
            _ => with_context(&path)(e),
        })?;
        let bytes = file.metadata().map_err(with_context(&path))?.len();
        Ok((file, bytes, lease))
    }

    /// Ends session `id` and removes its checkpoint. Blocks on the disk.
    pub fn end(&self, id: &str) -> Result<(), BackupError> {
        let ended = self.current.lock().take_if(|current| current.id == id);
        match ended {
            Some(_) => Ok(self.store.remove_checkpoint(id)?),
            None => Err(BackupError::Gone),
        }
    }

    /// Ends an idle session. Blocks on the disk.
    pub fn end_idle(&self) {
        self.end_if("idle", |current| current.is_idle());
    }

    /// Ends a session even if it is in use, because the service stops. Blocks on the disk.
    pub fn end_all(&self) {
        self.end_if("the service stops", |_| true);
    }

    fn end_if(&self, reason: &str, is_due: impl FnOnce(&mut Session) -> bool) {
        let Some(session) = self.current.lock().take_if(is_due) else {
            return;
        };
        match self.store.remove_checkpoint(&session.id) {
            Ok(()) => tracing::warn!(reason, "backup session ended before it was complete"),
            Err(error) => {
                tracing::error!(reason, %error, "checkpoint of a backup not removed; the next start removes it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn a_session_ends_when_it_is_idle_or_the_service_stops() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let sessions = Sessions::new(Arc::new(store));
        let is_there = |id: &str| sessions.store.checkpoint_path(id).exists();
        let time_passes = || {
            let current = sessions.current.lock();
            *current.as_ref().unwrap().last_used.lock() -= IDLE_TIME_MAX;
        };
        let id = sessions.start().unwrap().id;
        let read = sessions.open_file(&id, "FLOWTALLY").unwrap();
        time_passes();
        sessions.end_idle();
        assert!(matches!(sessions.start(), Err(BackupError::Busy)));
        // The minute begins when the last lease ends,
        read.2.end(Instant::now());
        sessions.end_idle();
        assert!(is_there(&id));
        time_passes();
        sessions.end_idle();
        assert!(!is_there(&id));
        // or earlier, if the reader had stalled.
        let id = sessions.start().unwrap().id;
        let (_, _, stalled) = sessions.open_file(&id, "FLOWTALLY").unwrap();
        stalled.end(Instant::now() - IDLE_TIME_MAX);
        sessions.end_idle();
        assert!(!is_there(&id));
        let idle = sessions.start().unwrap().id;
        time_passes();
        let id = sessions.start().unwrap().id;
        assert!(!is_there(&idle) && is_there(&id));
        let read = sessions.open_file(&id, "FLOWTALLY").unwrap();
        sessions.end_all();
        assert!(!is_there(&id));
        assert!(matches!(
            sessions.open_file(&id, "FLOWTALLY"),
            Err(BackupError::Gone)
        ));
        drop(read);
    }
}
