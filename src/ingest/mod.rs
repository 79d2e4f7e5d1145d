//! From a request's bytes to a batch: [`decode`] reads and validates, [`Admission`] bounds what is in memory, and
//! [`HourGuard`] refuses hours that are too far ahead of the clock.

mod admission;
pub mod decode;
pub mod gzip;
mod hour_guard;

pub use admission::{Admission, Overloaded, Permit};
pub use hour_guard::{HourGuard, HourLimit, TooFarAhead};
