//! The conversation with the directory, on a thread of its own, and the difference between the clocks of both ends.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::{io, thread};

use flow::directory::{DIRECTORY_PATH, DirectoryRequest, DirectoryResponse};

use super::super::clock::now_ms;
use crate::client::{Client, ClientError};

/// Exchanges of which the fastest tells the service's clock best.
const SAMPLES: usize = 8;
/// Both ends round to a millisecond.
const ROUNDING_MS: u64 = 2;
/// How far two clocks may drift apart: one millisecond in so many. NTP slews by half of it.
const DRIFT: u64 = 1000;

/// The outcome of a request.
#[derive(Debug)]
pub(super) struct Exchanged {
    sent_at: u64,
    received_at: u64,
    pub(super) response: Result<DirectoryResponse, ClientError>,
}

/// Sends one request at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    requests: Sender<DirectoryRequest>,
    responses: Receiver<Exchanged>,
    is_waiting: bool,
}

impl Exchange {
    pub(super) fn start(client: Client) -> io::Result<Exchange> {
        let (requests, to_send) = channel::<DirectoryRequest>();
        let (received, responses) = channel();
        let run = move || {
            for request in to_send {
                let sent_at = now_ms();
                let response = client.post_as_json(DIRECTORY_PATH, &request);
                let exchanged = Exchanged {
                    sent_at,
                    received_at: now_ms(),
                    response,
                };
                if received.send(exchanged).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("directory".into()).spawn(run)?;
        Ok(Exchange {
            requests,
            responses,
            is_waiting: false,
        })
    }

    /// Whether the last request has no response yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    pub(super) fn send(&mut self, request: DirectoryRequest) {
        self.is_waiting = self.requests.send(request).is_ok();
    }

    /// The response to the last request, if it has arrived.
    pub(super) fn receive(&mut self) -> Option<Exchanged> {
        match self.responses.try_recv() {
            Ok(exchanged) => {
                self.is_waiting = false;
                Some(exchanged)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }
}

/// How far the service's clock is ahead of this system's, from the times of requests and responses (as in NTP).
#[derive(Debug, Default)]
pub(super) struct ServiceClock {
    samples: VecDeque<Sample>,
}

/// What one exchange tells.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: u64,
    ahead: i64,
    /// How far it may be wrong.
    error: u64,
}

impl Sample {
    /// The same, later.
    fn error_at(&self, now: u64) -> u64 {
        self.error + now.saturating_sub(self.at) / DRIFT
    }
}

/// The difference between the clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    ahead: i64,
    /// The difference is off by this much at most.
    pub(super) error: u64,
}

impl ServiceClock {
    pub(super) fn add(&mut self, exchanged: &Exchanged, now: u64) {
        let Exchanged {
            sent_at,
            received_at,
            ..
        } = *exchanged;
        let middle = sent_at.midpoint(received_at);
        let (Ok(now), Ok(middle)) = (i64::try_from(now), i64::try_from(middle)) else {
            return;
        };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        let new = Sample {
            at: received_at,
            ahead: now.saturating_sub(middle),
            error: received_at.saturating_sub(sent_at) / 2 + ROUNDING_MS,
        };
        // If they cannot both be right, a clock was set, or another node has answered.
        self.samples.retain(|old| {
            let difference = old.ahead.abs_diff(new.ahead);
            difference <= old.error_at(received_at) + new.error
        });
        self.samples.push_back(new);
    }

    /// By the fastest of the last exchanges.
    pub(super) fn offset(&self, now: u64) -> Option<Offset> {
        let samples = self.samples.iter().rev();
        let best = samples.min_by_key(|sample| sample.error_at(now))?;
        Some(Offset {
            ahead: best.ahead,
            error: best.error_at(now),
        })
    }
}

impl Offset {
    pub(super) fn to_service(self, own: u64) -> u64 {
        own.saturating_add_signed(self.ahead)
    }

    pub(super) fn to_own(self, of_service: u64) -> u64 {
        of_service.saturating_add_signed(self.ahead.saturating_neg())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(clock: &mut ServiceClock, sent_at: u64, received_at: u64, now: u64) -> Offset {
        let exchanged = Exchanged {
            sent_at,
            received_at,
            response: Ok(DirectoryResponse::default()),
        };
        clock.add(&exchanged, now);
        clock.offset(received_at).unwrap()
    }

    #[test]
    fn the_fastest_exchange_tells_the_clock_best() {
        let mut clock = ServiceClock::default();
        assert_eq!(clock.offset(0), None);
        let offset = add(&mut clock, 1000, 1200, 5100);
        assert_eq!((offset.ahead, offset.error), (4000, 102));
        let offset = add(&mut clock, 2000, 2010, 6015);
        assert_eq!((offset.ahead, offset.error), (4010, 7));
        assert_eq!((offset.to_service(10), offset.to_own(4020)), (4020, 10));
        // A slow one does not make it worse, but its age does.
        let offset = add(&mut clock, 12_000, 12_100, 16_050);
        assert_eq!((offset.ahead, offset.error), (4010, 7 + 10));
    }

    #[test]
    fn a_clock_that_is_set_is_noticed() {
        let mut clock = ServiceClock::default();
        add(&mut clock, 1000, 1004, 5002);
        let offset = add(&mut clock, 2000, 2100, 2050);
        assert_eq!((offset.ahead, offset.error), (0, 52));
    }
}
