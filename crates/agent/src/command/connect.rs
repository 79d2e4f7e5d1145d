//! What commands that talk to a service share: where it is, and what it may ask for.

use std::io::{self, IsTerminal};
use std::ops::Range;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::arguments::Credentials;
use crate::client::{Client, Server};
use flow::query::HourRow;

/// The service at `url`.
pub fn server(url: &str, credentials: &Credentials) -> Result<Server, String> {
    let token = credentials.token_file.as_deref().map(token);
    Ok(Server {
        url: url.to_owned(),
        token: token.transpose()?,
        ca: credentials.ca.clone(),
        certificate: credentials.cert.clone().zip(credentials.key.clone()),
    })
}

/// A client of the service at `url`.
pub fn client(url: &str, credentials: &Credentials) -> Result<Client, String> {
    Client::new(&server(url, credentials)?).map_err(|e| e.to_string())
}

/// The hours that hold flows, ascending, from `hours.start` up to but without `hours.end`.
pub fn hours(
    client: &Client,
    hours: Range<u32>,
) -> Result<impl Iterator<Item = Result<HourRow, String>>, String> {
    let path = format!("/hours?from={}&to={}", hours.start, hours.end);
    let items = client.get_items(&path).map_err(|e| e.to_string())?;
    Ok(items.map(|item| item.map_err(|e| e.to_string())))
}

/// A bar for bytes; where no terminal is, nothing is drawn.
pub fn byte_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The first line of the file that is neither blank nor a comment: the file can be the service's own.
fn token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let token = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    match token {
        Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(token.to_owned()),
        Some(_) => Err(format!(
            "{}: what is in it is not a token: one has visible ASCII only",
            path.display()
        )),
        None => Err(format!("{}: no token is in it", path.display())),
    }
}
