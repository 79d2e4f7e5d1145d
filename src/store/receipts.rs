//! Receipts: which batch was taken under which idempotency key, so that one that is sent again counts
//! once.
//!
//! A receipt is written with its batch, in one atomic write of the journal. Old ones are dropped when
//! compaction comes by, and earlier where all of them together pass their bound: nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rocksdb::compaction_filter::Decision;
use rocksdb::{ColumnFamily, CompactOptions, DB, Options, properties};

use super::batch::Batch;
use super::codec::{self, Receipt};
use super::error::{StoreError, database};
use super::{Inner, Store, StoreOptions};

/// What is known of a batch's idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The batch has no key, or one that no batch has had within the window.
    New,
    /// The same flows were taken under it.
    Taken,
    /// Other flows were taken under it.
    Reused,
}

impl Store {
    /// Whether a batch was taken under the key of `batch`, and whether it was the same one.
    pub fn known(&self, batch: &Batch) -> Result<Known, StoreError> {
        let Some((key, fingerprint)) = batch.receipt() else {
            return Ok(Known::New);
        };
        let inner = &*self.inner;
        let value = inner
            .db
            .get_pinned_cf(receipts_family(&inner.db)?, key.as_bytes())
            .map_err(database("reading a receipt"))?;
        let Some(value) = value else {
            return Ok(Known::New);
        };
        let receipt = codec::decode_receipt(&value)?;
        Ok(if is_over(&receipt, &inner.options) {
            Known::New
        } else if receipt.fingerprint == fingerprint {
            Known::Taken
        } else {
            Known::Reused
        })
    }
}

/// Which receipts compaction drops.
#[derive(Debug)]
pub(super) struct Expiry {
    window: Duration,
    /// Seconds since the epoch: older ones go although they are within the window.
    oldest_kept_s: AtomicU64,
}

impl Expiry {
    pub(super) fn new(window: Duration) -> Expiry {
        Expiry {
            window,
            oldest_kept_s: AtomicU64::new(0),
        }
    }

    /// The time of the oldest receipt that is kept, in seconds since the epoch.
    fn oldest_kept_s(&self) -> u64 {
        let by_window = now().saturating_sub(self.window).as_secs();
        by_window.max(self.oldest_kept_s.load(Ordering::Relaxed))
    }

    /// Has compaction drop what is over.
    pub(super) fn install(self: &Arc<Expiry>, options: &mut Options) {
        let expiry = self.clone();
        options.set_compaction_filter(c"flowtally.expiry.v1", move |_level, _key, value| {
            // What is no receipt stays: whoever asks for it is told.
            let receipt = codec::decode_receipt(value);
            if receipt.is_ok_and(|receipt| receipt.time_s < expiry.oldest_kept_s()) {
                Decision::Remove
            } else {
                Decision::Keep
            }
        });
    }
}

impl Inner {
    /// Whether receipts take more of the disk than they may.
    pub(super) fn receipts_pass_their_bound(&self) -> Result<bool, StoreError> {
        Ok(self.receipts_bytes()? > self.options.receipts_bytes_max)
    }

    fn receipts_bytes(&self) -> Result<u64, StoreError> {
        let bytes = self
            .db
            .property_int_value_cf(receipts_family(&self.db)?, properties::LIVE_SST_FILES_SIZE)
            .map_err(database("reading a property"))?;
        Ok(bytes.unwrap_or(0))
    }

    /// Drops the oldest, so many that the others take three quarters of the bound, if they came in
    /// evenly.
    pub(super) fn drop_old_receipts(&self) -> Result<(), StoreError> {
        let (bytes, most) = (self.receipts_bytes()?, self.options.receipts_bytes_max);
        if bytes <= most {
            return Ok(());
        }
        let (oldest, now) = (self.expiry.oldest_kept_s(), now().as_secs());
        let kept =
            u128::from(now.saturating_sub(oldest)) * u128::from(most) * 3 / 4 / u128::from(bytes);
        let kept = u64::try_from(kept).unwrap_or(u64::MAX);
        self.expiry
            .oldest_kept_s
            .store(now.saturating_sub(kept), Ordering::Relaxed);
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        let all = None::<&[u8]>;
        self.db
            .compact_range_cf_opt(receipts_family(&self.db)?, all, all, &options);
        tracing::info!(
            bytes,
            bytes_now = self.receipts_bytes()?,
            "idempotency keys passed their bound on disk; the oldest are forgotten"
        );
        Ok(())
    }
}

/// A clock that was set back makes receipts live longer, not shorter.
fn is_over(receipt: &Receipt, options: &StoreOptions) -> bool {
    let until = Duration::from_secs(receipt.time_s).saturating_add(options.idempotency_window);
    now() > until
}

/// Time since the epoch.
pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

pub(super) fn receipts_family(db: &DB) -> Result<&ColumnFamily, StoreError> {
    db.cf_handle(codec::RECEIPTS).ok_or(StoreError::Closed)
}
