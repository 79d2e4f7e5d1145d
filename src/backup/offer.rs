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
    used: Used,
}

/// When a checkpoint was last of use to somebody.
#[derive(Clone, Debug)]
pub struct Used(Arc<Mutex<Instant>>);

impl Used {
    fn now() -> Used {
        Used(Arc::new(Mutex::new(Instant::now())))
    }

    /// It is, just now.
    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_over(&self) -> bool {
        let used = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.elapsed() >= IDLE_MAX
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
        {
            let mut current = self.current();
            if current.as_ref().is_some_and(|c| !c.used.is_over()) {
                return Err(BackupError::Busy);
            }
            let used = Used::now();
            let before = current.replace(Current {
                id: id.clone(),
                used,
            });
            drop(current);
            let removed = before.map(|before| self.store.remove_checkpoint(&before.id));
            if let Some(Err(error)) = removed {
                *self.current() = None;
                return Err(error.into());
            }
        }
        let made = self.store.checkpoint(&id).map_err(BackupError::from);
        let files = made.and_then(|path| entries(&path));
        match files {
            Ok(files) => Ok(Manifest { id, files }),
            Err(error) => {
                let _best_effort = self.end(&id);
                Err(error)
            }
        }
    }

    /// One file of the checkpoint `id`, its length, and what to touch while it is being read.
    pub fn file(&self, id: &str, name: &str) -> Result<(File, u64, Used), BackupError> {
        let (path, used) = match self.current().as_mut().filter(|current| current.id == id) {
            Some(current) if super::is_file_name(name) => {
                current.used.touch();
                let path = self.store.checkpoint_path(id).join(name);
                (path, current.used.clone())
            }
            _ => return Err(BackupError::Gone),
        };
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => BackupError::Gone,
            _ => at(&path)(e),
        })?;
        let bytes = file.metadata().map_err(at(&path))?.len();
        Ok((file, bytes, used))
    }

    /// Lets the checkpoint `id` go. Blocks on the disk.
    pub fn end(&self, id: &str) -> Result<(), BackupError> {
        let is_it = |current: &mut Current| current.id == id;
        match self.current().take_if(is_it) {
            Some(_) => Ok(self.store.remove_checkpoint(id)?),
            None => Err(BackupError::Gone),
        }
    }

    /// Lets a checkpoint go that nobody fetches. Blocks on the disk.
    pub fn tidy(&self) {
        let is_idle = |current: &mut Current| current.used.is_over();
        let Some(current) = self.current().take_if(is_idle) else {
            return;
        };
        match self.store.remove_checkpoint(&current.id) {
            Ok(()) => tracing::warn!("a backup was begun and not ended, and is let go"),
            Err(error) => tracing::error!(%error, "a backup that was not ended stays on the disk"),
        }
    }

    /// Every change is complete before the lock is let go.
    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
