//! Progress bars. Without a terminal, nothing is drawn.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for bytes; the caller sets the length.
pub fn byte_bar() -> ProgressBar {
    draw(
        ProgressBar::new(0),
        "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )
}

/// A bar for an input, which has a length unless it is a pipe.
pub fn input_bar(bytes: Option<u64>) -> ProgressBar {
    match bytes {
        Some(bytes) => draw(
            ProgressBar::new(bytes),
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
        ),
        None => draw(
            ProgressBar::no_length(),
            "{spinner} {bytes} {bytes_per_sec} {wide_msg}",
        ),
    }
}

fn draw(bar: ProgressBar, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
