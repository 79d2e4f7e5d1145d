//! `flowtally top`.

mod drill;
mod live;
mod once;
mod query;
mod selection;
mod state;
mod view;

use std::io::{self, IsTerminal};
use std::time::Instant;

use self::query::TopQuery;
use self::state::State;
use crate::config::Top;
use agent::command::connect;

/// Rows that `--once` prints without `--limit`.
const ROWS_ONCE: u32 = 20;

pub(super) fn run(arguments: &Top) -> Result<(), String> {
    let client = connect::client(&arguments.service.url, &arguments.credentials)?;
    let mut query = TopQuery {
        hour: arguments.hour,
        group_by: arguments.group_by,
        sort: arguments.sort,
        filters: arguments.filters.clone(),
        limit: arguments.limit.unwrap_or(ROWS_ONCE) as usize,
    };
    if arguments.once {
        return once::run(&query, &client, arguments);
    }
    if !io::stdout().is_terminal() {
        return Err(
            "standard output is not a terminal; use --once to print the rows and exit".into(),
        );
    }
    query.limit = 0; // until the size of the terminal is known
    let limit = arguments.limit.map(|limit| limit as usize);
    let url = client.url("");
    let mut state = State::new(url, query, limit, arguments.interval, Instant::now());
    match live::run(&mut state, client)? {
        None => Ok(()),
        Some(signal) => std::process::exit(128 + signal),
    }
}
