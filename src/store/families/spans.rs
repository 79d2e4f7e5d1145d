//! The spans that have rows in `settled`: in memory as on disk.

use std::sync::Arc;

use crate::store::error::StoreError;
use crate::store::tiers::Summed;
use crate::store::{Inner, Step};

impl Inner {
    /// The spans that have rows in `settled`.
    pub(in crate::store) fn summed(&self) -> Result<Arc<Summed>, StoreError> {
        let mut summed = self.families.summed.lock();
        if let Some(known) = &*summed {
            return Ok(known.clone());
        }
        let read = Arc::new(Summed::read(&self.db)?);
        // Under the lock: an older state must not replace a newer one.
        self.retention.note_thinned(read.finest);
        *summed = Some(read.clone());
        Ok(read)
    }

    /// Runs `ingest`, which makes `change` to the spans in `settled`, so that readers see either state.
    pub(in crate::store) fn change_spans(
        &self,
        ingest: impl FnOnce() -> Result<(), StoreError>,
        change: impl FnOnce(&mut Summed),
    ) -> Result<(), StoreError> {
        // See `note_spans`.
        self.summed()?;
        self.visibility.during_change(|| {
            let ingested = ingest();
            self.step(Step::SpansIngested);
            self.note_spans(&ingested, change);
            ingested
        })
    }

    /// Makes `change` to the spans in memory, after the ingest that made it on disk. The ingest may have succeeded even if it
    /// returned an error, so they are read again then. Call [`Inner::summed`] before the ingest, so that they are in memory.
    pub(super) fn note_spans(
        &self,
        ingested: &Result<(), StoreError>,
        change: impl FnOnce(&mut Summed),
    ) {
        let mut summed = self.families.summed.lock();
        if ingested.is_err() {
            *summed = None;
        } else if let Some(known) = &mut *summed {
            // A reader that has them keeps those from before the change: then this copies them.
            let known = Arc::make_mut(known);
            change(known);
            self.retention.note_thinned(known.finest);
        }
    }
}
