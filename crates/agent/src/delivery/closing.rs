//! Batches are closed when they are full, when they are old enough, and at the end; each then gets its key, and
//! goes into the queue.

use std::io::Write;
use std::sync::MutexGuard;
use std::time::Duration;

use super::queue::{Entry, Lack};
use super::{OpenBatch, SendError, Sender, Shared, State};

const ZSTD_LEVEL: i32 = 1;
/// How soon the room that somebody has made is seen.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// Tells the user what there is no room in, once, and waits a little.
    pub(super) fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        lack: Lack,
    ) -> MutexGuard<'a, State> {
        if state.lack.replace(lack) != Some(lack) {
            drop(state);
            if let Some(path) = &self.options.spool {
                let path = path.display();
                (self.notice.0)(&match lack {
                    Lack::Bytes => format!(
                        "{path}: --spool-max is reached, by what waits and by what is in {path}/refused; \
                         reading waits until there is room"
                    ),
                    Lack::Disk => {
                        format!("{path}: the disk is full; reading waits until there is room")
                    }
                });
            }
            state = self.state();
        }
        self.wait(state, ROOM_INTERVAL)
    }

    /// Moves the open batch into the queue, once there is room.
    pub(super) fn close_batch<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, SendError> {
        // The other side may have closed it meanwhile.
        while state.open.flows > 0 {
            if !state.queue.is_full() {
                match self.try_to_close(&mut state)? {
                    None => break,
                    Some(lack) if state.failed.is_none() => {
                        state = self.wait_for_room(state, lack);
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

    /// Moves the open batch into the queue. Where there is no room, it stays as it is.
    pub(super) fn try_to_close(&self, state: &mut State) -> Result<Option<Lack>, SendError> {
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
        let entry = Entry {
            key: Sender::random_key(),
            notes: String::new(),
            if_late: None,
            flows,
            is_block: false,
            compressed,
        };
        let pushed = state.queue.push(entry, body);
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

    /// The life of the thread that closes batches which are not full, but old enough. Without a spool, a
    /// batch is filled on while others wait, since few can.
    pub(super) fn close_aged_batches(&self, age: Duration) {
        let mut state = self.state();
        // Where the service takes nothing any more, the spool still keeps what was read.
        while !state.abandoned
            && !matches!(
                state.failed,
                Some(SendError::Interrupted | SendError::Spool { .. })
            )
        {
            let may_close = state.queue.is_spool() || state.queue.is_empty();
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
                Ok(Some(lack)) => state = self.wait_for_room(state, lack),
                // It is in `failed`.
                Err(_) => return,
            }
        }
    }
}

/// What a body of so many bytes of JSON can have at most, compressed or not.
pub(super) fn body_bytes_max(json_bytes: usize) -> u64 {
    zstd::zstd_safe::compress_bound(json_bytes) as u64
}

/// With a checksum, so that a spool that is damaged is not taken for other flows.
pub(super) fn compress(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut zstd = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    zstd.include_checksum(true)?;
    zstd.write_all(json)?;
    zstd.finish()
}
