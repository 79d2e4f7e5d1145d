//! Queries, as types and as the parameters of `GET /flows` and `GET /hours` ([`text`]).

mod hours;
pub mod text;
mod time;
mod types;

pub use hours::{HourRow, HourTotals, HoursQuery};
pub use types::{Columns, Filter, NameFilter, Query, Sort, SortBy};
