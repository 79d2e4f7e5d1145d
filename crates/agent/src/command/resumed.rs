//! A pipe whose first flow was begun by an earlier command: what that one kept of it is read first, where the
//! pipe continues it.

use std::io::{self, Read};

use serde_json::value::RawValue;

use flow::decode;

use crate::inputs::{Quiet, Stopped, begins_compressed};

/// Of a pipe, what it is told by at most whether it continues something.
const LOOK_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 16 << 10;

/// Called once with whether the pipe continues what was kept, as soon as that shows.
type OnDecided = Box<dyn FnOnce(bool) -> io::Result<()> + Send>;

/// See the module.
pub struct Resumed<R> {
    pipe: R,
    kept: Vec<u8>,
    on_decided: Option<OnDecided>,
    /// To be read before the rest of the pipe.
    begin: Vec<u8>,
    /// What came instead of more.
    error: Option<io::Error>,
}

impl<R: Read> Resumed<R> {
    pub fn new(
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
            begin: Vec::new(),
            error: None,
        }
    }

    /// Reads until it shows. A pipe that gives nothing leaves what was kept as it is.
    fn decide(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; READ_BYTES];
        let continues = loop {
            let is_last = match self.pipe.read(&mut chunk) {
                Ok(0) => true,
                Ok(read) => {
                    self.begin.extend_from_slice(&chunk[..read]);
                    self.begin.len() >= LOOK_BYTES_MAX
                }
                // Nothing may come behind a flow for long.
                Err(error) if Quiet::is(&error) => match is_whole(&self.kept, &self.begin) {
                    true => break true,
                    false => continue,
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if self.begin.is_empty() => return Err(error),
                // It is decided by the next command.
                Err(error) => {
                    self.error = Some(error);
                    break continues(&self.kept, &self.begin, false).unwrap_or(true);
                }
            };
            if self.begin.is_empty() {
                return Ok(());
            }
            if let Some(continues) = continues(&self.kept, &self.begin, is_last) {
                break continues;
            }
        };
        if continues {
            let rest = match self.kept.trim_ascii() == b"[" {
                // The comma behind the flow before, which the array that is read next begins without.
                true => self.begin.trim_ascii_start().strip_prefix(b","),
                false => None,
            };
            self.begin = [&self.kept, rest.unwrap_or(&self.begin)].concat();
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
        if !self.begin.is_empty() {
            let length = self.begin.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.begin[..length]);
            self.begin.drain(..length);
            return Ok(length);
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => self.pipe.read(buffer),
        }
    }
}

/// Whether an input that begins with `kept` can be continued by `begin`, of which nothing more comes if it is the
/// `last`; `None` where that does not show yet. A pipe can also be another, which begins with a flow of its own.
fn continues(kept: &[u8], begin: &[u8], is_last: bool) -> Option<bool> {
    if begins_compressed(begin) {
        return Some(false);
    }
    let is_array = kept.starts_with(b"[");
    if !is_array && !kept.starts_with(b"{") {
        // A header and a line that is not whole, or a part of a header. Of another file, the header is seen as
        // one wherever it is.
        return Some(!matches!(
            begin.trim_ascii_start().first(),
            Some(b'{' | b'[')
        ));
    }
    let of_flow = if is_array { &kept[1..] } else { kept };
    let has_flow = !of_flow.trim_ascii().is_empty();
    if is_array && !has_flow {
        match begin.trim_ascii_start().first() {
            None => return is_last.then_some(true),
            Some(b',' | b']') => return Some(true),
            Some(b'{') => {}
            Some(_) => return Some(false),
        }
    }
    let line = begin.iter().position(|&byte| byte == b'\n');
    let text = match (is_array, line) {
        (false, Some(end)) => [of_flow, &begin[..end]].concat(),
        _ => [of_flow, begin].concat(),
    };
    let is_all = is_last || (!is_array && line.is_some());
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<&RawValue>();
    match values.next() {
        Some(Ok(_)) => {
            let behind = text[values.byte_offset()..].trim_ascii_start().first();
            match behind {
                None if is_all => Some(true),
                None => None,
                Some(b',' | b']') => Some(is_array),
                Some(_) => Some(false),
            }
        }
        // It would be the value of a field.
        Some(Err(_)) if begins_with_a_flow(begin) => Some(false),
        // Half a number or half a word looks wrong, too, and only at its end.
        Some(Err(error)) if !is_all && (error.is_eof() || is_at_end(&text, &error)) => None,
        // An array that breaks off: of its flow there is no more.
        Some(Err(error)) => Some(is_array && error.is_eof()),
        None => Some(true),
    }
}

/// Whether both together are a value.
fn is_whole(kept: &[u8], begin: &[u8]) -> bool {
    let kept = kept.strip_prefix(b"[").unwrap_or(kept);
    let text = [kept, begin].concat();
    !begin.is_empty() && serde_json::from_slice::<&RawValue>(&text).is_ok()
}

/// Whether it has a flow of its own, or an array of flows.
fn begins_with_a_flow(begin: &[u8]) -> bool {
    let begin = begin.trim_ascii_start();
    let begin = begin.strip_prefix(b"[").unwrap_or(begin);
    let first = serde_json::Deserializer::from_slice(begin)
        .into_iter::<&RawValue>()
        .next();
    matches!(first, Some(Ok(flow)) if decode::validate_flow(flow.get()).is_ok())
}

/// Whether it is about the last bytes.
fn is_at_end(text: &[u8], error: &serde_json::Error) -> bool {
    let last_line = text.split(|&byte| byte == b'\n').next_back();
    let lines = text.iter().filter(|&&byte| byte == b'\n').count() + 1;
    error.line() == lines && error.column() + 1 >= last_line.unwrap_or_default().len()
}

/// Whether what was kept has a part of a flow in it, besides what stands before flows.
pub fn has_flow(kept: &[u8]) -> bool {
    let kept = kept.trim_ascii_start();
    let is_header = kept.ends_with(b"\n") && !kept.trim_ascii().contains(&b'\n');
    !matches!(kept.trim_ascii(), b"" | b"[") && !is_header
}

/// What an input was stopped in, if it is worth keeping.
pub fn unfinished(error: &mut io::Error) -> Vec<u8> {
    let text = Stopped::of(error).map(|stopped| std::mem::take(&mut stopped.unfinished));
    let text = text.unwrap_or_default();
    match text.trim_ascii_start() {
        b"" => Vec::new(),
        begun => begun.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever a pipe is cut, the rest of it continues what was kept; and another pipe does not.
    #[test]
    fn the_rest_is_told_from_another_input() {
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
                    let is_it = |kept: &str| decided(kept.as_bytes(), other.as_bytes(), step);
                    assert!(!is_it(kept), "{kept} and {other}, {step}");
                    assert!(!is_it(&in_array), "{in_array} and {other}, {step}");
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

    /// A pipe that is quiet after each piece, and stopped at last.
    struct Pieces(Vec<&'static str>, bool);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.0.first() {
                None => Err(io::Error::other(Stopped::default())),
                Some(_) if !self.1 => Err(io::Error::other(Quiet)),
                Some(_) => self.0.remove(0).as_bytes().read(buffer),
            }
        }
    }

    /// What does not show before it is stopped again shows to the next.
    #[test]
    fn silence_and_a_stop_decide_nothing() {
        for (kept, pieces) in [
            (r#"{"a"#, vec![r#"":1,"#, r#""b":"#]),
            (r#"[{"a"#, vec![r#"":1,"#, r#""b":"#]),
            (r#"{"a"#, vec![r#"":1"#, "}"]),
            ("hou", vec!["r,src"]),
        ] {
            let expected = kept.to_owned() + &pieces.concat();
            let decided = std::sync::Arc::new(std::sync::Mutex::new(None));
            let told = decided.clone();
            let mut input = Resumed::new(Pieces(pieces, false), kept.into(), move |continues| {
                *told.lock().unwrap() = Some(continues);
                Ok(())
            });
            let mut text = Vec::new();
            let mut buffer = [0; 100];
            let error = loop {
                match input.read(&mut buffer) {
                    Ok(length) => text.extend_from_slice(&buffer[..length]),
                    Err(error) if Quiet::is(&error) => {}
                    Err(mut error) => break Stopped::of(&mut error).is_some(),
                }
            };
            assert!(error);
            assert_eq!(text, expected.as_bytes());
            assert_eq!(*decided.lock().unwrap(), Some(true));
        }
    }
}
