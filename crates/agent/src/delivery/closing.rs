//! Closes batches when they are full, old enough, or the input has ended. A closed batch gets its key and goes into the
//! queue.

use parking_lot::MutexGuard;
use std::io::Write;
use std::time::Duration;

use super::queue::{BatchMeta, QueueFull};
use super::{OpenBatch, SendError, Sender, SenderState, State};

const ZSTD_LEVEL: i32 = 1;
/// Interval of the checks for free room.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

impl SenderState {
    /// Notifies the user once of the shortage, and waits for [`ROOM_INTERVAL`].
    pub(super) fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        full: QueueFull,
    ) -> MutexGuard<'a, State> {
        if state.full.replace(full) != Some(full) {
            drop(state);
            if let Some(path) = &self.options.spool {
                let path = path.display();
                (self.notice.0)(&match full {
                    QueueFull::Bytes => format!(
                        "{path}: --spool-max is reached by waiting batches and those in {path}/refused; \
                         reading pauses until there is room"
                    ),
                    QueueFull::Disk => {
                        format!("{path}: the disk is full; reading pauses until there is room")
                    }
                });
            }
            state = self.state();
        }
        self.wait(state, ROOM_INTERVAL)
    }

    /// Moves the open batch into the queue, as soon as there is room.
    pub(super) fn close_batch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, SendError> {
        // Another thread may have closed it meanwhile.
        while state.open.flows > 0 {
            if !state.queue.is_full() {
                match self.try_to_close(&mut state)? {
                    None => break,
                    Some(full) if state.failed.is_none() => {
                        state = self.wait_for_room(state, full);
                        continue;
                    }
                    Some(_) => {}
                }
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = self.wait(state, ROOM_INTERVAL);
        }
        Ok(state)
    }

    /// Moves the open batch into the queue. If there is no room, leaves it unchanged.
    pub(super) fn try_to_close(&self, state: &mut State) -> Result<Option<QueueFull>, SendError> {
        if state.open.flows == 0 {
            return Ok(None);
        }
        let flows = state.open.flows;
        let mut json = std::mem::take(&mut state.open.json);
        json.push(b']');
        let compressed = self.options.compress;
        let body = match compressed {
            true => {
                compress(&json).map_err(|e| SendError::Options(format!("cannot compress: {e}")))?
            }
            false => json.clone(),
        };
        let meta = BatchMeta {
            key: Sender::random_key(),
            notes: String::new(),
            if_late: None,
            flows,
            is_keyed: false,
            compressed,
        };
        let pushed = state.queue.push(meta, body);
        match &pushed {
            Ok(None) => state.open = OpenBatch::default(),
            Ok(Some(_)) => {
                json.pop();
                state.open.json = json;
            }
            Err(error) => state.failed = Some(error.clone()),
        }
        self.changed.notify_all();
        pushed
    }

    /// Body of the thread that closes batches that are old enough but not full. Without a spool, the queue is
    /// short, so a batch is not closed while others wait.
    pub(super) fn close_aged_batches(&self, age: Duration) {
        let mut state = self.state();
        // The spool keeps what was read even if the service accepts nothing any more.
        while !state.abandoned
            && !matches!(
                state.failed,
                Some(SendError::Interrupted | SendError::Spool { .. })
            )
        {
            // While draining, the room is reserved for one batch of all flows that were read.
            let may_close =
                !state.is_draining && (state.queue.is_spool() || state.queue.is_empty());
            let left = match state.open.since {
                Some(since) if may_close => age.saturating_sub(since.elapsed()),
                _ => Duration::from_secs(60),
            };
            if !left.is_zero() {
                state = self.wait(state, left);
                continue;
            }
            match self.try_to_close(&mut state) {
                Ok(None) => {}
                Ok(Some(full)) => state = self.wait_for_room(state, full),
                // The error is in `failed`.
                Err(_) => return,
            }
        }
    }
}

/// The maximum size of the body for this much JSON, compressed or not.
pub(super) fn body_bytes_max(json_bytes: usize) -> u64 {
    zstd::zstd_safe::compress_bound(json_bytes) as u64
}

/// Adds a checksum, so that damage in the spool is detected.
pub(super) fn compress(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut zstd = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    zstd.include_checksum(true)?;
    zstd.write_all(json)?;
    zstd.finish()
}
