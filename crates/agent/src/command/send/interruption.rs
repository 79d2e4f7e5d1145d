//! Stops the transfer when a signal arrives, and exits the process.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::iterator::Signals;

use super::super::drain::Drain;
use super::super::{batches, eprint_line, resumed, signals};
use crate::delivery::{SendError, Sender};

/// Maximum wait, after a signal, until the flows that were read are in the spool.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// The transfer in progress, for the signal thread.
#[derive(Debug, Default)]
pub(super) struct ActiveTransfer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    current: Option<TransferHandles>,
    /// A signal has arrived, and the process is about to exit.
    is_stopped: bool,
}

#[derive(Debug)]
pub(super) struct TransferHandles {
    pub(super) sender: Arc<Sender>,
    pub(super) drain: Arc<Drain>,
    pub(super) has_spool: bool,
    /// The input can be sent again and counts once.
    pub(super) once: bool,
}

impl ActiveTransfer {
    /// Must be called before the input is read. Does not return after a signal, so that nothing is read then.
    pub(super) fn set(&self, current: Option<TransferHandles>) {
        let mut state = self.0.lock();
        if state.is_stopped && current.is_some() {
            drop(state);
            block_forever();
        }
        state.current = current;
    }

    /// Stops the transfer. Keeps flows in the spool for the next process if the input cannot be read again.
    /// Returns the message for the user.
    fn stop(&self) -> String {
        let mut state = self.0.lock();
        state.is_stopped = true;
        let current = state.current.take();
        drop(state);
        let Some(current) = current else {
            return "stopped; run it again to send the rest".into();
        };
        // Stop reading first, so that no flow is read without reserved room in the spool.
        if current.has_spool {
            current.drain.stop();
        }
        if current.sender.drain_to_spool() {
            current.drain.wait(DRAIN_TIME_MAX);
        }
        let kept = current.sender.interrupt();
        let waiting = current.sender.report().waiting;
        let unfinished = match current.sender.unfinished() {
            Ok(text) if resumed::has_flow(&text) => format!(
                "; and {} bytes of an unfinished flow, for the next run on this pipe",
                text.len()
            ),
            _ => String::new(),
        };
        match kept {
            Err(error) => error.to_string(),
            Ok(_) if current.once => "stopped; run it again to send the rest".into(),
            Ok(0) if current.has_spool => {
                format!("stopped; in the spool: {}{unfinished}", batches(waiting))
            }
            Ok(lost) if current.has_spool => format!(
                "stopped; in the spool: {}{unfinished}; {lost} flows had no room",
                batches(waiting)
            ),
            Ok(lost) => format!(
                "stopped; {} and {lost} flows may not have been sent",
                batches(waiting)
            ),
        }
    }
}

/// Exits the process when a signal arrives.
pub(super) fn exit_at_signal(active: Arc<ActiveTransfer>) -> io::Result<()> {
    let mut signals = Signals::new(signals::ending())?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        eprint_line(&format!("flowtally: {}", active.stop()));
        std::process::exit(128 + signal);
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)?;
    Ok(())
}

/// Converts an error to text. If the sender was interrupted, blocks: [`exit_at_signal`] prints the message and
/// exits the process.
pub(super) fn error_text(error: SendError) -> String {
    if matches!(error, SendError::Interrupted) {
        block_forever();
    }
    error.to_string()
}

pub(super) fn block_forever() -> ! {
    loop {
        std::thread::park();
    }
}
