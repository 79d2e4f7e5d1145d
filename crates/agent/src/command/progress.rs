//! Progress bars, in MB as on the page. Without a terminal, nothing is drawn.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str = "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
const INPUT: &str =
    "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} {wide_msg}";
const PIPE: &str = "{spinner} {decimal_bytes} {decimal_bytes_per_sec} {wide_msg}";

/// A bar for bytes; the caller sets the length.
pub fn byte_bar() -> ProgressBar {
    draw(ProgressBar::new(0), BYTES)
}

/// A bar for an input, which has a length unless it is a pipe.
pub fn input_bar(bytes: Option<u64>) -> ProgressBar {
    match bytes {
        Some(bytes) => draw(ProgressBar::new(bytes), INPUT),
        None => draw(ProgressBar::no_length(), PIPE),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A wrong template would be ignored.
    #[test]
    fn templates_have_decimal_units_only() {
        for template in [BYTES, INPUT, PIPE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
            assert!(
                !template.contains("{bytes") && !template.contains("{total"),
                "{template}"
            );
        }
    }
}
