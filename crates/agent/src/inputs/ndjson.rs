//! NDJSON: one flow per line.

use std::io::Read;
use std::ops::ControlFlow;

use super::window::Window;
use super::{BYTE_ORDER_MARK, InputError, Location, RawBlock, RawFlow, Sink, Unusable, lines};
use flow::decode::{Format, lookalikes};

/// Reads from line `line` on.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    lines::read(window, line, sink, |text, line, sink| {
        let block = RawBlock {
            text,
            format: Format::Ndjson,
            first: Location::Line(line),
        };
        Ok(match sink.block(block) {
            ControlFlow::Continue(None) => one_by_one(text, line, sink),
            taken => taken.map_continue(|_| ()),
        })
    })
}

fn one_by_one(text: &[u8], line: u64, sink: &mut dyn Sink) -> ControlFlow<()> {
    for (number, flow) in (line..).zip(text.split(|&byte| byte == b'\n')) {
        let mut flow = flow.trim_ascii();
        // Concatenated files may each have a byte order mark.
        while let Some(rest) = flow.strip_prefix(BYTE_ORDER_MARK) {
            flow = rest.trim_ascii();
        }
        if flow.is_empty() {
            continue;
        }
        let location = Location::Line(number);
        match std::str::from_utf8(flow) {
            Ok(text) => sink.flow(RawFlow {
                location,
                text,
                unusable: lookalikes::recognize_line(text).map(Unusable::Invalid),
            })?,
            Err(error) => {
                let why = format!("not UTF-8 at byte {}", error.valid_up_to());
                sink.flow(RawFlow {
                    location,
                    text: &String::from_utf8_lossy(flow),
                    unusable: Some(Unusable::Invalid(why)),
                })?;
            }
        }
    }
    ControlFlow::Continue(())
}
