//! Texts for the user about batches that the service refuses: the reason, and the way to send them again.

use std::path::Path;

use super::queue::BatchMeta;
use super::status::RejectReason;

/// Number of flows for a batch in place of one that was too large.
pub(super) fn smaller(meta: &BatchMeta) -> usize {
    (meta.flows / 8).max(1)
}

/// The remedy for a batch that is not stored anywhere. A file has no spool, and is cut into batches by its content.
pub(super) fn not_kept(meta: &BatchMeta, reason: RejectReason) -> String {
    match (meta.is_keyed, reason) {
        (true, RejectReason::Size) => {
            "if the limit of the service or of a proxy cannot be raised, give --rejects FILE: it keeps the flows of \
             such a batch, the rest is sent, and the message at the end has the command for smaller batches"
                .into()
        }
        (true, _) => "give --rejects FILE to keep the flows of such a batch and send the rest".into(),
        (false, _) => {
            // `import` reads pipes, too, and has no spool.
            let keep = "give --rejects FILE, or flowtally send --spool DIR, to keep such a batch and send the rest";
            match reason {
                RejectReason::Size if meta.flows > 1 => format!(
                    "flowtally send --batch-flows {} sends smaller batches; {keep}",
                    smaller(meta)
                ),
                _ => keep.into(),
            }
        }
    }
}

/// The text beside a refused batch.
pub(super) fn reason(
    path: &Path,
    meta: &BatchMeta,
    why: &str,
    again: Option<(&str, RejectReason)>,
) -> String {
    let Some((command, reject_reason)) = again else {
        return format!("{why}\n\nIts {} flows were not sent.\n", meta.flows);
    };
    let path = shell_word(&path.display().to_string());
    // A file is sent with the batch's key as its source, so that it is not mistaken for an equal file that
    // was counted. A pipe is cut into batches of the given size.
    let by_source = format!("--source {} {path}", meta.key);
    let (first, input) = match reject_reason {
        RejectReason::Size if meta.flows > 1 => (
            "To send it again, in smaller batches",
            format!("--batch-flows {} - <{path}", smaller(meta)),
        ),
        RejectReason::Form if meta.compressed => (
            "The compression or a proxy may be the cause. To send it again",
            format!("--no-compress {by_source}"),
        ),
        RejectReason::Form => (
            "The URL, the token or a proxy may be the cause. To send it again",
            by_source,
        ),
        RejectReason::Flow if meta.compressed => (
            "Correct or remove the flow that is named above; zstd -d decompresses the file, and the result is sent in the same \
             way. To send the file again",
            by_source,
        ),
        RejectReason::Flow => (
            "Correct or remove the flow that is named above. To send the file again",
            by_source,
        ),
        _ => ("To send it again", by_source),
    };
    format!(
        "{why}\n\nNone of its {} flows counted. {first}:\n{command} {input}\n",
        meta.flows
    )
}

/// Quotes `text` as one word for a shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
