//! Opens a URL in the user's browser.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

/// The program that opens a URL in the desktop's browser.
const OPENER: &str = match cfg!(target_os = "macos") {
    true => "open",
    false => "xdg-open",
};
/// Variables of which at least one is set where there is a desktop.
const DESKTOP_VARIABLES: [&str; 2] = ["DISPLAY", "WAYLAND_DISPLAY"];

/// Whether there is a desktop that can show a browser.
pub(super) fn has_desktop() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(target_os = "macos") || DESKTOP_VARIABLES.into_iter().any(is_set)
}

/// Opens `url` in the browser, and does not wait for it.
///
/// # Errors
/// If the program that does it cannot be started, as text for the user.
pub(super) fn open(url: &str) -> Result<(), String> {
    let started = Command::new(OPENER)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Otherwise, a Ctrl-C in this terminal would end the browser too.
        .process_group(0)
        .spawn();
    let reap = |mut child: std::process::Child| {
        // It may be the browser itself, which runs for long.
        let wait = move || child.wait();
        thread::Builder::new().name("browser".into()).spawn(wait)
    };
    started
        .and_then(reap)
        .map(drop)
        .map_err(|e: io::Error| format!("{OPENER}: {e}; open {url} yourself"))
}
