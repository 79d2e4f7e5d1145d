//! Questions: as values, and as the parameters of `GET /flows` and `GET /hours` ([`text`]).

mod hours;
mod question;
pub mod text;

pub use hours::{HourRow, HoursQuery};
pub use question::{Columns, Filter, Query, Sort, SortBy};
