//! The client of a service, built from the command line.

use crate::arguments::Credentials;
use crate::client::{Client, Server, read_first_token};
use flow::HourRange;
use flow::query::HourRow;

/// Address and credentials of the service at `url`.
pub(crate) fn server(url: &str, credentials: &Credentials) -> Result<Server, String> {
    let token = credentials.token_file.as_deref().map(read_first_token);
    Ok(Server {
        url: url.to_owned(),
        token: token.transpose().map_err(|e| e.to_string())?,
        ca: credentials.ca.clone(),
        certificate: credentials.cert.clone().zip(credentials.key.clone()),
    })
}

/// A client of the service at `url`.
pub fn client(url: &str, credentials: &Credentials) -> Result<Client, String> {
    Client::new(&server(url, credentials)?).map_err(|e| e.to_string())
}

/// Those `hours` that hold flows, ascending.
pub fn hours(
    client: &Client,
    hours: HourRange,
) -> Result<impl Iterator<Item = Result<HourRow, String>>, String> {
    let path = format!("/hours?from={}&to={}", hours.start(), hours.end());
    let items = client.get_items(&path).map_err(|e| e.to_string())?;
    Ok(items.map(|item| item.map_err(|e| e.to_string())))
}
