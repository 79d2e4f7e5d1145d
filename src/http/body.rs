//! A request's body, received and decompressed within bounds.

use std::io::{self, Read};
use std::pin::Pin;
use std::time::Duration;

use bytes::Buf;
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;
use warp::http::HeaderMap;
use warp::http::header;

use super::api::Api;
use super::error::Problem;
use crate::ingest::{Admission, MEMORY_PER_BODY_BYTE, Permit};
use flow::Encoding;
use flow::decode::lookalikes;
use flow::gzip::Gzip;

/// Bytes to decompress between two checks of the limits.
const STEP_BYTES: usize = 64 << 10;
/// See [`drain`].
const DRAIN_BYTES_MAX: usize = 16 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// A client that sends nothing for this long probably waits for the response.
const DRAIN_IDLE_MAX: Duration = Duration::from_millis(200);
/// Largest window that a zstd frame may request: 8 MiB, the maximum of `zstd` up to level 19.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Refuses a body whose `Content-Length` is larger than `bytes_max`, before any of it is read.
pub(super) fn refuse_longer(headers: &HeaderMap, bytes_max: usize) -> Result<(), Problem> {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    match length.is_some_and(|length| length > bytes_max) {
        true => Err(Problem::BodyTooLarge { bytes_max }),
        false => Ok(()),
    }
}

/// Reads the whole body. The permit covers its bytes, and has to be kept as long as they or the batch decoded from them
/// exist.
pub(super) async fn receive(
    api: &Api,
    headers: &HeaderMap,
    encoding: Encoding,
    mut stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<(Vec<u8>, Permit), Problem> {
    let bytes_max = api.limits.body_bytes_max;
    let too_large = || Problem::BodyTooLarge { bytes_max };
    refuse_other_transfer_codings(headers)?;
    let mut permit = Permit::default();
    let mut body = Vec::new();
    // Hyper has validated the header; it refuses two that differ.
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        let length = usize::try_from(length).map_err(|_| too_large())?;
        if length > bytes_max {
            return Err(too_large());
        }
        // Untouched memory costs nothing; it is counted as the bytes arrive.
        body.reserve_exact(length);
    }
    let deadline = Instant::now() + api.limits.body_time_max;
    loop {
        let idle = Instant::now() + api.limits.body_idle_max;
        let part = tokio::time::timeout_at(idle.min(deadline), stream.next());
        let part = tokio::select! {
            biased;
            part = part => part.map_err(|_| Problem::BodyTimeout)?,
            error = api.admission.until_evicted(&permit) => return Err(error.into()),
        };
        let Some(part) = part else { break };
        let mut part = part.map_err(|e| Problem::BadBody {
            what: format!("the body did not arrive completely: {e}"),
        })?;
        let bytes = body.len() + part.remaining();
        if bytes > bytes_max {
            return Err(too_large());
        }
        api.admission
            .grow(&mut permit, bytes * MEMORY_PER_BODY_BYTE)
            .await?;
        while part.has_remaining() {
            let slice = part.chunk();
            body.extend_from_slice(slice);
            let taken = slice.len();
            part.advance(taken);
        }
    }
    if body.is_empty() && length.is_none() && !headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Problem::LengthRequired);
    }
    let plain = match encoding {
        Encoding::Identity => body,
        Encoding::Gzip => {
            let gzip = Gzip::new(body.as_slice());
            let plain = decompress(&api.admission, bytes_max, &mut permit, body.len(), gzip).await;
            plain.map_err(|e| e.into_problem("gzip", &body))?
        }
        Encoding::Zstd => {
            let zstd = zstd::Decoder::with_buffer(body.as_slice()).and_then(|mut zstd| {
                zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(zstd)
            });
            let plain = match zstd {
                Ok(zstd) => {
                    decompress(&api.admission, bytes_max, &mut permit, body.len(), zstd).await
                }
                Err(error) => Err(DecompressError::Corrupt(error)),
            };
            plain.map_err(|e| e.into_problem("zstd", &body))?
        }
    };
    Ok((plain, permit))
}

/// Hyper decodes chunks, and ignores other transfer codings.
fn refuse_other_transfer_codings(headers: &HeaderMap) -> Result<(), Problem> {
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        if !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Problem::ContentEncoding {
                what: format!("Transfer-Encoding is {value:?}; only chunked is supported"),
            });
        }
    }
    Ok(())
}

/// Reads and discards the rest of a refused request's body, within limits. If the connection were closed while the
/// client is still sending, the client would not see why it was refused.
pub(super) async fn drain(
    headers: &HeaderMap,
    mut stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) {
    // Such a client waits for the response before it sends the body, and reading would ask it to send.
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let rest = async {
        let mut bytes = 0;
        while let Ok(Some(Ok(part))) = tokio::time::timeout(DRAIN_IDLE_MAX, stream.next()).await {
            bytes += part.remaining();
            if bytes > DRAIN_BYTES_MAX {
                break;
            }
        }
    };
    let _in_time = tokio::time::timeout(DRAIN_TIME_MAX, rest).await;
}

/// Decompresses step by step, so that neither a decompression bomb nor a large body gets more than its share of memory,
/// or blocks the thread for long: other tasks run after each step, which takes less than a millisecond.
async fn decompress(
    admission: &Admission,
    bytes_max: usize,
    permit: &mut Permit,
    compressed_bytes: usize,
    mut decoder: impl Read,
) -> Result<Vec<u8>, DecompressError> {
    let mut plain = Vec::new();
    loop {
        let before = plain.len();
        let bytes = compressed_bytes + (before + STEP_BYTES) * MEMORY_PER_BODY_BYTE;
        let grown = admission.grow(permit, bytes).await;
        grown.map_err(|error| DecompressError::Refused(error.into()))?;
        Read::by_ref(&mut decoder)
            .take(STEP_BYTES as u64)
            .read_to_end(&mut plain)
            .map_err(DecompressError::Corrupt)?;
        if plain.len() > bytes_max {
            return Err(DecompressError::Refused(Problem::BodyTooLarge {
                bytes_max,
            }));
        }
        if plain.len() < before + STEP_BYTES {
            return Ok(plain);
        }
        // The budget of a task (`consume_budget`) would allow 128 steps, 8 MiB.
        tokio::task::yield_now().await;
    }
}

/// The reason why a body could not be decompressed.
enum DecompressError {
    Corrupt(io::Error),
    Refused(Problem),
}

impl DecompressError {
    /// `name` is the value of the request's `Content-Encoding`.
    fn into_problem(self, name: &str, body: &[u8]) -> Problem {
        let error = match self {
            DecompressError::Corrupt(error) => error,
            DecompressError::Refused(problem) => return problem,
        };
        let mut what = format!("the body is not valid {name}: {error}");
        if what.contains("too much memory") {
            what +=
                "; windows of up to 8 MiB are possible, as all levels but --ultra and --long use";
        } else if let Some(hint) = lookalikes::recognize_encoded(body, name) {
            what += &format!("; {hint}");
        }
        Problem::BadBody { what }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// While a large body is decompressed, another task on the same thread runs after each step.
    #[tokio::test]
    async fn decompression_yields_to_other_tasks() {
        let body = vec![b'x'; 4 << 20];
        let compressed = zstd::encode_all(body.as_slice(), 3).unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let other = tokio::spawn({
            let turns = turns.clone();
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        let admission = Admission::new(64 << 20, 16 << 20, Duration::from_secs(1));
        let mut permit = Permit::default();
        let zstd = zstd::Decoder::with_buffer(compressed.as_slice()).unwrap();
        let plain = decompress(&admission, 8 << 20, &mut permit, compressed.len(), zstd).await;
        assert!(plain.is_ok_and(|plain| plain == body));
        let steps = body.len() / STEP_BYTES;
        assert!(turns.load(Ordering::Relaxed) >= steps, "{turns:?}");
        other.abort();
    }
}
