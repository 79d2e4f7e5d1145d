//! Detects the format of an input from its first bytes.

use std::io::Read;

use serde_json::value::RawValue;

use super::pause::is_object;
use super::window::Window;
use super::{
    BYTE_ORDER_MARK, InputError, InputFormat, azure_flow_logs, json_records, newlines,
    vpc_flow_logs,
};
use flow::decode::lookalikes;

/// Maximum bytes that are examined, if the first line is longer.
const SNIFF_BYTES: usize = 64 << 10;

/// Skips to the first flow or header, and returns the detected format and the line.
///
/// # Errors
/// If the input is in another format; the error names it if it is known.
pub(super) fn sniff(window: &mut Window<impl Read>) -> Result<(InputFormat, u64), InputError> {
    let mut line = 1;
    loop {
        window.fill()?;
        let some = window.text();
        let blank = some.len() - some.trim_ascii_start().len();
        line += newlines(&some[..blank]);
        // Consume everything in one step, because the window moves its rest whenever it is filled.
        window.consume(blank);
        if window.text().starts_with(BYTE_ORDER_MARK) {
            window.consume(BYTE_ORDER_MARK.len());
            continue;
        }
        let some = window.text();
        let is_cut = some.len() >= SNIFF_BYTES;
        let is_all = is_cut || window.has_ended();
        let some = &some[..some.len().min(SNIFF_BYTES)];
        // The length of the longest byte order mark.
        if some.len() < 4 && !is_all {
            continue;
        }
        // Before the lookalikes, which are what a request's body may not be.
        if azure_flow_logs::begins_with(some) {
            return Ok((InputFormat::AzureFlowLogs, line));
        }
        if let Some(origin) = json_records::recognize(some) {
            return Ok((origin.format(), line));
        }
        let lookalike = match lookalikes::recognize_bytes(some) {
            Some(lookalike) => Some(lookalike.to_string()),
            None => match some.first() {
                None => return Ok((InputFormat::Ndjson, line)), // nothing
                // Do not wait for the end of the line, which may arrive much later.
                Some(b'{') if window.is_idle() && is_object(some) && !some.contains(&b'\n') => {
                    return Ok((InputFormat::Ndjson, line));
                }
                // Its first element tells whose records these are.
                Some(b'[') if is_all || window.is_idle() || has_first_element(some) => {
                    return Ok((InputFormat::Json, line));
                }
                Some(b'[') => None,
                Some(b'{') => match pretty_printed(some, is_all, is_cut) {
                    Pretty::No => return Ok((InputFormat::Ndjson, line)),
                    Pretty::Yes(what) => Some(what),
                    Pretty::Perhaps => None,
                },
                _ => match some.iter().position(|&byte| byte == b'\n') {
                    None if !is_all => None,
                    end => {
                        let header = String::from_utf8_lossy(&some[..end.unwrap_or(some.len())]);
                        let format = match vpc_flow_logs::begins_with(&header) {
                            true => InputFormat::VpcFlowLogs,
                            false => InputFormat::Csv,
                        };
                        return Ok((format, line));
                    }
                },
            },
        };
        if let Some(what) = lookalike {
            return Err(InputError::Malformed(what));
        }
    }
}

/// Whether the first element of an array is complete, or not an object.
fn has_first_element(array: &[u8]) -> bool {
    let element = array[1..].trim_ascii_start();
    match element.first() {
        None => false,
        Some(b'{') => {
            let mut values = serde_json::Deserializer::from_slice(element).into_iter::<&RawValue>();
            !matches!(values.next(), Some(Err(error)) if error.is_eof())
        }
        Some(_) => true,
    }
}

/// Whether the first line is an array, and the next one starts like one.
pub(super) fn is_array_a_line(text: &[u8]) -> bool {
    let Some(end) = text.iter().position(|&byte| byte == b'\n') else {
        return false;
    };
    text.starts_with(b"[")
        && text[end..].trim_ascii_start().starts_with(b"[")
        && serde_json::from_slice::<&RawValue>(&text[..end]).is_ok()
}

/// Whether an object spans several lines.
enum Pretty {
    No,
    /// It does; with a hint for the user.
    Yes(String),
    /// Its end has not been read yet.
    Perhaps,
}

/// Examines the start of an input, which may be complete or longer. The first line may be cut.
fn pretty_printed(some: &[u8], is_all: bool, is_cut: bool) -> Pretty {
    let last_line = some.iter().rposition(|&byte| byte == b'\n');
    let whole_lines = match last_line {
        _ if is_all && !is_cut => some,
        Some(last) => &some[..last],
        None if is_all => return Pretty::No,
        None => return Pretty::Perhaps,
    };
    let mut values = serde_json::Deserializer::from_slice(whole_lines).into_iter::<&RawValue>();
    let text = match values.next() {
        Some(Ok(value)) => value.get().as_bytes(),
        Some(Err(error)) if error.is_eof() && !is_all => return Pretty::Perhaps,
        Some(Err(error)) if error.is_eof() && is_cut => whole_lines,
        _ => return Pretty::No,
    };
    if !text.contains(&b'\n') {
        return Pretty::No;
    }
    Pretty::Yes(lookalikes::recognize_pretty(&String::from_utf8_lossy(text)))
}
