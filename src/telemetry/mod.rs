//! The [`log`] and the [`metrics`] of the service.

pub mod log;
pub mod metrics;

pub use metrics::Metrics;
