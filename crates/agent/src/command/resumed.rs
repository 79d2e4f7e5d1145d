//! A pipe that may continue a flow whose start an earlier command has read. If it does, that start is read first.

use std::io::{self, Read};

use serde_json::value::RawValue;

use flow::decode;

use crate::inputs::{Idle, Stopped, begins_compressed};

/// Maximum bytes of the pipe on which the decision depends.
const DECISION_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 16 << 10;

/// Called once it is known whether the pipe continues the kept text.
type OnDecided = Box<dyn FnOnce(bool) -> io::Result<()> + Send>;

/// A reader of the kept text, if the pipe continues it, and then of the pipe.
pub(crate) struct Resumed<R> {
    pipe: R,
    /// The text that an earlier command kept.
    kept: Vec<u8>,
    on_decided: Option<OnDecided>,
    /// The bytes to return before the rest of the pipe.
    start: Vec<u8>,
    /// The error to return after `start`.
    error: Option<io::Error>,
}

impl<R: Read> Resumed<R> {
    pub(crate) fn new(
        pipe: R,
        kept: Vec<u8>,
        on_decided: impl FnOnce(bool) -> io::Result<()> + Send + 'static,
    ) -> Resumed<R> {
        let on_decided: Option<OnDecided> = match kept.is_empty() {
            true => None,
            false => Some(Box::new(on_decided)),
        };
        Resumed {
            pipe,
            kept,
            on_decided,
            start: Vec::new(),
            error: None,
        }
    }

    /// Reads until it is known whether the pipe continues the kept text. If the pipe is empty, the text stays kept.
    fn decide(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; READ_BYTES];
        let continues = loop {
            let is_last = match self.pipe.read(&mut chunk) {
                Ok(0) => true,
                Ok(read) => {
                    self.start.extend_from_slice(&chunk[..read]);
                    self.start.len() >= DECISION_BYTES_MAX
                }
                // After a complete flow, more may not arrive for a long time.
                Err(error) if Idle::is(&error) => {
                    match is_complete_value(&self.kept, &self.start) {
                        true => break true,
                        false => continue,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if self.start.is_empty() => return Err(error),
                // Undecided: the next command decides.
                Err(error) => {
                    self.error = Some(error);
                    break continues(&self.kept, &self.start, false).unwrap_or(true);
                }
            };
            if self.start.is_empty() {
                return Ok(());
            }
            if let Some(continues) = continues(&self.kept, &self.start, is_last) {
                break continues;
            }
        };
        if continues {
            let rest = match self.kept.trim_ascii() == b"[" {
                // The comma follows the flow before, which is not part of the array that is read now.
                true => self.start.trim_ascii_start().strip_prefix(b","),
                false => None,
            };
            self.start = [&self.kept, rest.unwrap_or(&self.start)].concat();
        }
        match self.on_decided.take() {
            Some(on_decided) => on_decided(continues),
            None => Ok(()),
        }
    }
}

impl<R: Read> Read for Resumed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.on_decided.is_some() {
            self.decide()?;
        }
        if !self.start.is_empty() {
            let length = self.start.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.start[..length]);
            self.start.drain(..length);
            return Ok(length);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.pipe.read(buffer),
        }
    }
}

/// Whether a pipe that starts with `start` continues `kept`, or is another input, which starts with a flow of its own.
/// `None` if that depends on further bytes; `is_last`: there are none.
fn continues(kept: &[u8], start: &[u8], is_last: bool) -> Option<bool> {
    if begins_compressed(start) {
        return Some(false);
    }
    let is_array = kept.starts_with(b"[");
    if !is_array && !kept.starts_with(b"{") {
        // CSV or a flow log: a header and an incomplete line, or a part of a header. If the pipe is another input,
        // its header is recognised at any place.
        return Some(!matches!(
            start.trim_ascii_start().first(),
            Some(b'{' | b'[')
        ));
    }
    let flow_text = if is_array { &kept[1..] } else { kept };
    let has_flow = !flow_text.trim_ascii().is_empty();
    if is_array && !has_flow {
        match start.trim_ascii_start().first() {
            None => return is_last.then_some(true),
            Some(b',' | b']') => return Some(true),
            Some(b'{') => {}
            Some(_) => return Some(false),
        }
    }
    let line = start.iter().position(|&byte| byte == b'\n');
    let text = match (is_array, line) {
        (false, Some(end)) => [flow_text, &start[..end]].concat(),
        _ => [flow_text, start].concat(),
    };
    let is_complete = is_last || (!is_array && line.is_some());
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(_)) => {
            let next = text[values.byte_offset()..].trim_ascii_start().first();
            match next {
                None if is_complete => Some(true),
                None => None,
                Some(b',' | b']') => Some(is_array),
                Some(_) => Some(false),
            }
        }
        // Otherwise, the flow would be the value of a field.
        Some(Err(_)) if starts_with_flow(start) => Some(false),
        // The error may be due to a number or a literal that is cut.
        Some(Err(error)) if !is_complete && (error.is_eof() || is_at_end(&text, &error)) => None,
        // The input ends inside an array.
        Some(Err(error)) => Some(is_array && error.is_eof()),
        None => Some(true),
    }
}

/// Whether the kept text and `start` together are one complete JSON value.
fn is_complete_value(kept: &[u8], start: &[u8]) -> bool {
    let kept = kept.strip_prefix(b"[").unwrap_or(kept);
    let text = [kept, start].concat();
    !start.is_empty() && serde_json::from_slice::<&RawValue>(&text).is_ok()
}

/// Whether it starts with a valid flow, or with an array whose first element is one.
fn starts_with_flow(start: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    let start = start.strip_prefix(b"[").unwrap_or(start);
    let first = serde_json::Deserializer::from_slice(start)
        .into_iter::<&RawValue>()
        .next();
    matches!(first, Some(Ok(flow)) if decode::validate_flow(flow.get()).is_ok())
}

/// Whether the error is at the end of the text.
fn is_at_end(text: &[u8], error: &serde_json::Error) -> bool {
    let last_line = text.split(|&byte| byte == b'\n').next_back();
    let lines = text.iter().filter(|&&byte| byte == b'\n').count() + 1;
    error.line() == lines && error.column() + 1 >= last_line.unwrap_or_default().len()
}

/// Whether the kept text has a part of a flow, and not only a header or an opening bracket.
pub(crate) fn has_flow(kept: &[u8]) -> bool {
    let kept = kept.trim_ascii_start();
    let is_header = kept.ends_with(b"\n") && !kept.trim_ascii().contains(&b'\n');
    !matches!(kept.trim_ascii(), b"" | b"[") && !is_header
}

/// Takes the unfinished text out of an error that stopped reading. Empty if there is nothing to keep.
pub(crate) fn take_unfinished(error: &mut io::Error) -> Vec<u8> {
    let text = Stopped::from_error(error).map(|stopped| std::mem::take(&mut stopped.unfinished));
    let text = text.unwrap_or_default();
    match text.trim_ascii_start() {
        b"" => Vec::new(),
        text => text.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe is cut at every byte. Its rest continues the kept text; another pipe does not.
    #[test]
    fn the_rest_is_distinguished_from_another_input() {
        let flow = |name: &str| {
            format!(
                r#"{{"src_app":"{name} \u00e9[","rtt":0.5e1,"x":[{{}}],"dest_app":"b","vpc_id":"v","bytes_tx":1,"bytes_rx":2,"hour":3}}"#
            )
        };
        let decided = |kept: &[u8], pipe: &[u8], step: usize| {
            let mut read = step.min(pipe.len());
            loop {
                let is_last = read == pipe.len();
                if let Some(continues) = continues(kept, &pipe[..read], is_last) {
                    return continues;
                }
                read = (read + step).min(pipe.len());
            }
        };
        let (one, two) = (flow("one"), flow("two"));
        let lines = format!("{two}\n{two}\n");
        let array = format!("[{two},{two}]");
        let pretty = format!("[\n  {two},\n  {two}\n]\n");
        for cut in 1..one.len() {
            let (kept, rest) = one.split_at(cut);
            let in_array = format!("[{kept}");
            for step in [1, 7, 100_000] {
                let rest_of_lines = format!("{rest}\n{lines}");
                let rest_of_array = format!("{rest} ,\n{two}]");
                assert!(decided(kept.as_bytes(), rest_of_lines.as_bytes(), step));
                assert!(decided(in_array.as_bytes(), rest_of_array.as_bytes(), step));
                for other in [&lines, &array, &pretty] {
                    let continues_kept =
                        |kept: &str| decided(kept.as_bytes(), other.as_bytes(), step);
                    assert!(!continues_kept(kept), "{kept} and {other}, {step}");
                    assert!(!continues_kept(&in_array), "{in_array} and {other}, {step}");
                }
            }
        }
        let header = "src_app,dest_app\n";
        assert!(!has_flow(b"[ ") && !has_flow(header.as_bytes()));
        assert!(has_flow(b"[{") && has_flow(format!("{header}a,").as_bytes()));
        for (rest, expected) in [
            (format!("{two},{two}]"), true),
            (format!(",{two}]"), true),
            ("]".into(), true),
            (lines, false),
            (array, false),
            (pretty, false),
        ] {
            assert_eq!(decided(b"[", rest.as_bytes(), 1), expected, "{rest}");
        }
        assert!(!decided(b"[", &[0x1f, 0x8b, 8], 3));
    }

    /// A pipe that is idle after each chunk, and stopped after the last one.
    struct PipeChunks(Vec<&'static str>, bool);

    impl Read for PipeChunks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.0.first() {
                None => Err(io::Error::other(Stopped::default())),
                Some(_) if !self.1 => Err(io::Error::other(Idle)),
                Some(_) => self.0.remove(0).as_bytes().read(buffer),
            }
        }
    }

    /// If reading is stopped before the decision, all text is kept for the next command.
    #[test]
    fn an_idle_or_stopped_pipe_decides_nothing() {
        for (kept, pieces) in [
            (r#"{"a"#, vec![r#"":1,"#, r#""b":"#]),
            (r#"[{"a"#, vec![r#"":1,"#, r#""b":"#]),
            (r#"{"a"#, vec![r#"":1"#, "}"]),
            ("hou", vec!["r,src"]),
        ] {
            let expected = kept.to_owned() + &pieces.concat();
            let decided = std::sync::Arc::new(std::sync::Mutex::new(None));
            let decision = decided.clone();
            let mut input =
                Resumed::new(PipeChunks(pieces, false), kept.into(), move |continues| {
                    *decision.lock().unwrap() = Some(continues);
                    Ok(())
                });
            let mut text = Vec::new();
            let mut buffer = [0; 100];
            let error = loop {
                match input.read(&mut buffer) {
                    Ok(length) => text.extend_from_slice(&buffer[..length]),
                    Err(error) if Idle::is(&error) => {}
                    Err(mut error) => break Stopped::from_error(&mut error).is_some(),
                }
            };
            assert!(error);
            assert_eq!(text, expected.as_bytes());
            assert_eq!(*decided.lock().unwrap(), Some(true));
        }
    }
}
