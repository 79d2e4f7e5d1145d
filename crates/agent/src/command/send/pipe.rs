//! Sends a pipe: flows are sent within a second of reading them.

use std::ops::ControlFlow;

use super::super::drain::Drain;
use super::super::resumed;
use super::super::source::FlowInput;
use super::interruption::{block_forever, error_text};
use super::{SendSession, with_remedy};
use crate::arguments::Send;
use crate::delivery::{SendError, Sender};
use crate::inputs::{InputError, Skipped, Unusable};

impl SendSession {
    /// Sends the flows of a pipe until it ends, or is stopped.
    pub(super) fn transfer_pipe(
        &self,
        arguments: &Send,
        source: FlowInput,
        sender: &Sender,
        drain: &Drain,
    ) -> (Skipped, Result<(), String>) {
        let mut failed = None;
        let (mut count, mut skipped) = (0_u64, Skipped::default());
        let reader = source.reader(&arguments.input, &self.apps, &self.bar);
        let mut read = reader.read(|raw| {
            let pushed = match raw.unusable {
                Some(Unusable::Invalid(why)) => Ok(Err(why)),
                Some(Unusable::Skipped(why)) => {
                    skipped.count(why);
                    Ok(Ok(()))
                }
                None => sender.push(raw.text).or_else(|error| {
                    // Even if nothing more can be sent, the spool keeps the flows that were read.
                    if matches!(error, SendError::Interrupted) || !sender.drain_to_spool() {
                        return Err(error);
                    }
                    drain.stop();
                    failed.get_or_insert(error.to_string());
                    sender.push(raw.text)
                }),
            };
            let kept = match pushed {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => {
                    let location = format!("{}: {}", arguments.file.display(), raw.location);
                    self.rejects.write(&location, &[raw.text.to_owned()], &why)
                }
                Err(error) => Err(error_text(error)),
            };
            count += 1;
            drain.pass();
            if count.is_multiple_of(1024) {
                self.show(sender);
            }
            match kept {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Err(InputError::Io(error)) = &mut read {
            self.keep_unfinished(sender, &resumed::take_unfinished(error));
        }
        drain.end();
        if failed.is_none() && drain.is_stopped() {
            // The sender has given up, and everything that was read is passed on.
            failed = sender.failure().map(error_text);
        }
        if failed.is_none() && drain.is_stopped() {
            // The signal thread does the rest, and exits the process.
            block_forever();
        }
        // Deliver what was read, even if reading the rest failed.
        let finished = match failed {
            Some(error) => Err(error),
            None => sender.finish(|| self.show(sender)).map_err(error_text),
        };
        // Put undelivered flows into the spool, including the batch that was being filled.
        let finished = finished.map_err(|error| {
            let dropped = sender.interrupt().unwrap_or_default();
            let waiting = sender.report().waiting;
            with_remedy(error, arguments.spool.is_some(), false, waiting, dropped)
        });
        let read = read.or_else(|e| match drain.is_stopped() {
            true => Ok(()),
            false => Err(e),
        });
        let read = read.map_err(|e| {
            let rest = match count {
                0 => "nothing was sent",
                _ => "the flows before that were sent, the rest was not read",
            };
            format!("{}: {e}; {rest}", arguments.file.display())
        });
        (skipped, finished.and(read))
    }

    /// Keeps the start of a flow after reading a pipe was stopped; the next command reads it first.
    fn keep_unfinished(&self, sender: &Sender, text: &[u8]) {
        let bytes = text.len();
        let lost = match text {
            b"" => return,
            text => match sender.keep_unfinished(text) {
                Ok(true) => return,
                Ok(false) if !resumed::has_flow(text) => return,
                Ok(false) => String::new(),
                Err(error) => format!("{error}; "),
            },
        };
        self.rejects.eprint_line(&format!(
            "flowtally: {lost}{bytes} bytes of an unfinished flow are not kept"
        ));
    }
}
