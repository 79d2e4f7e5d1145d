//! What the service tells its operator: the [`log`], and [`metrics`].

pub mod log;
pub mod metrics;

pub use metrics::Metrics;
