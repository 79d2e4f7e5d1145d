//! The serving half: one checkpoint at a time, whose files can be fetched until it is let go.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{BackupError, Manifest, at, entries};
use crate::store::Store;

/// A checkpoint of which nobody has fetched anything for so long is let go: it keeps files on the disk
/// that the service does not need any more.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What there is to fetch.
#[derive(Debug)]
pub struct Offer {
    store: Arc<Store>,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    id: String,
    used: Arc<Mutex<Instant>>,
}

impl Current {
    /// Whether nobody has been reading any of it for long.
    fn is_over(&self) -> bool {
        let is_read = Arc::strong_count(&self.used) > 1;
        !is_read && lock(&self.used).elapsed() >= IDLE_MAX
    }

    fn use_it(&self) -> InUse {
        InUse(self.used.clone())
    }
}

/// Somebody makes the checkpoint or reads a file of it, however slowly, until this is dropped.
#[derive(Debug)]
pub struct InUse(Arc<Mutex<Instant>>);

impl InUse {
    /// Ends it. The checkpoint is let go when it has not been used again for long since `at`.
    pub fn end(self, at: Instant) {
        *lock(&self.0) = at;
    }
}

impl Offer {
    pub fn new(store: Arc<Store>) -> Offer {
        Offer {
            store,
            current: Mutex::new(None),
        }
    }

    /// Makes a checkpoint, and says what is in it. Blocks on the disk.
    ///
    /// # Errors
    /// [`BackupError::Busy`] while another is being fetched.
    pub fn begin(&self) -> Result<Manifest, BackupError> {
        let id = Uuid::now_v7().simple().to_string();
        let made = Current {
            id: id.clone(),
            used: Arc::new(Mutex::new(Instant::now())),
        };
        let it_takes_its_time = made.use_it();
        let before = {
            let mut current = lock(&self.current);
            if current.as_ref().is_some_and(|c| !c.is_over()) {
                return Err(BackupError::Busy);
            }
            current.replace(made)
        };
        let removed = before.map_or(Ok(()), |before| self.store.remove_checkpoint(&before.id));
        let made = removed.and_then(|()| self.store.checkpoint(&id));
        let files = made
            .map_err(BackupError::from)
            .and_then(|made| entries(&made.path));
        it_takes_its_time.end(Instant::now());
        // A stop may have come meanwhile.
        let is_offered = lock(&self.current).as_ref().is_some_and(|c| c.id == id);
        match files {
            Ok(files) if is_offered => Ok(Manifest { id, files }),
            files => {
                let _best_effort = self.store.remove_checkpoint(&id);
                lock(&self.current).take_if(|current| current.id == id);
                Err(files.err().unwrap_or(BackupError::Gone))
            }
        }
    }

    /// One file of the checkpoint `id`, its length, and what to keep while it is being read.
    pub fn file(&self, id: &str, name: &str) -> Result<(File, u64, InUse), BackupError> {
        let in_use = match lock(&self.current).as_ref() {
            Some(current) if current.id == id && super::is_file_name(name) => current.use_it(),
            _ => return Err(BackupError::Gone),
        };
        let path = self.store.checkpoint_path(id).join(name);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => BackupError::Gone,
            _ => at(&path)(e),
        })?;
        let bytes = file.metadata().map_err(at(&path))?.len();
        Ok((file, bytes, in_use))
    }

    /// Lets the checkpoint `id` go. Blocks on the disk.
    pub fn end(&self, id: &str) -> Result<(), BackupError> {
        let ended = lock(&self.current).take_if(|current| current.id == id);
        match ended {
            Some(_) => Ok(self.store.remove_checkpoint(id)?),
            None => Err(BackupError::Gone),
        }
    }

    /// Lets a checkpoint go that nobody fetches. Blocks on the disk.
    pub fn tidy(&self) {
        self.let_go("a backup was begun and not ended", |current| {
            current.is_over()
        });
    }

    /// Lets a checkpoint go whoever fetches it: the service stops. Blocks on the disk.
    pub fn stop(&self) {
        self.let_go("a backup was being taken when the stop came", |_| true);
    }

    fn let_go(&self, why: &str, is_due: impl FnOnce(&mut Current) -> bool) {
        let Some(current) = lock(&self.current).take_if(is_due) else {
            return;
        };
        match self.store.remove_checkpoint(&current.id) {
            Ok(()) => tracing::warn!("{why}, and is let go"),
            Err(error) => {
                tracing::error!(%error, "{why}, and stays on the disk until the next start")
            }
        }
    }
}

/// Every change is complete before a lock is let go.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn it_is_let_go_when_nobody_reads_it_or_the_service_stops() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let offer = Offer::new(Arc::new(store));
        let is_there = |id: &str| offer.store.checkpoint_path(id).exists();
        let time_passes = || {
            let current = lock(&offer.current);
            *lock(&current.as_ref().unwrap().used) -= IDLE_MAX;
        };
        let id = offer.begin().unwrap().id;
        let read = offer.file(&id, "FLOWTALLY").unwrap();
        time_passes();
        offer.tidy();
        assert!(matches!(offer.begin(), Err(BackupError::Busy)));
        // The minute begins when the last reader has ended,
        read.2.end(Instant::now());
        offer.tidy();
        assert!(is_there(&id));
        time_passes();
        offer.tidy();
        assert!(!is_there(&id));
        // or earlier, where that one has taken nothing.
        let id = offer.begin().unwrap().id;
        let (_, _, stalled) = offer.file(&id, "FLOWTALLY").unwrap();
        stalled.end(Instant::now() - IDLE_MAX);
        offer.tidy();
        assert!(!is_there(&id));
        let idle = offer.begin().unwrap().id;
        time_passes();
        let id = offer.begin().unwrap().id;
        assert!(!is_there(&idle) && is_there(&id));
        let read = offer.file(&id, "FLOWTALLY").unwrap();
        offer.stop();
        assert!(!is_there(&id));
        assert!(matches!(
            offer.file(&id, "FLOWTALLY"),
            Err(BackupError::Gone)
        ));
        drop(read);
    }
}
