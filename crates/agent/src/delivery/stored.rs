//! Batches whose caller keeps something in step with the spool.

use std::io;

use super::closing::compress;
use super::queue::BatchMeta;
use super::{SendError, Sender};

impl Sender {
    /// Appends a JSON array of flows to the spool as one batch. Calls `stored` when it is on disk, and does not send it
    /// before that returns. Returns false, without calling it, if the spool or the disk is full.
    ///
    /// # Errors
    /// If `stored` fails, the batch stays in the spool, and this sender sends nothing any more.
    pub(crate) fn push_stored(
        &self,
        key: &str,
        flows: usize,
        json: Vec<u8>,
        stored: impl FnOnce() -> io::Result<()>,
    ) -> Result<bool, SendError> {
        let shared = &*self.shared;
        let compressed = shared.options.compress;
        let body = match compressed {
            true => {
                compress(&json).map_err(|e| SendError::Options(format!("cannot compress: {e}")))?
            }
            false => json,
        };
        let meta = BatchMeta {
            key: key.to_owned(),
            notes: String::new(),
            if_late: None,
            flows,
            is_keyed: false,
            compressed,
        };
        let mut state = shared.state();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.queue.reserve(body.len() as u64)?.is_some() {
            return Ok(false);
        }
        if state.queue.push(meta, body)?.is_some() {
            return Ok(false);
        }
        if let Err(error) = stored() {
            let error = SendError::NotKept(error.to_string());
            return Err(state.failed.get_or_insert(error).clone());
        }
        shared.changed.notify_all();
        Ok(true)
    }
}
