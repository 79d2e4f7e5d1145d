//! Line-based inputs.

use std::io::Read;
use std::ops::ControlFlow;

use super::pause::is_object;
use super::window::Window;
use super::{InputError, Sink, newlines};
use flow::decode::lookalikes;

/// Passes blocks of complete lines to `each`, with the number of the first line, starting with line `line`,
/// until it breaks. Lines that exceed the limit on memory are refused.
pub(super) fn read(
    mut window: Window<impl Read>,
    mut line: u64,
    sink: &mut dyn Sink,
    mut each: impl FnMut(&[u8], u64, &mut dyn Sink) -> Result<ControlFlow<()>, InputError>,
) -> Result<(), InputError> {
    loop {
        window.fill()?;
        let text = window.text();
        let end = match text.iter().rposition(|&byte| byte == b'\n') {
            _ if window.has_ended() && text.is_empty() => return Ok(()),
            _ if window.has_ended() => text.len(),
            // Do not wait for the line end of a complete object: it may arrive much later.
            last if window.is_idle() && is_object(&text[last.map_or(0, |last| last + 1)..]) => {
                text.len()
            }
            Some(last) => last + 1,
            None if window.is_full() => {
                let mut refused = window.skip_line(line)?;
                if let Some(known) = lookalikes::recognize_json(&refused.text) {
                    refused.why = format!("{known} ({})", refused.why);
                }
                if sink.refused(refused).is_break() {
                    return Ok(());
                }
                continue;
            }
            None => continue,
        };
        let text = &text[..end];
        if each(text, line, sink)?.is_break() {
            return Ok(());
        }
        line += newlines(text);
        window.consume(end);
    }
}
