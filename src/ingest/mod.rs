//! The steps before a commit: [`Admission`] bounds the memory of requests, and [`HourGuard`] refuses hours that are too
//! far ahead of the clock.

mod admission;
mod hour_guard;

pub use admission::{Admission, MEMORY_PER_BODY_BYTE, Overloaded, Permit};
pub use hour_guard::HourGuard;
