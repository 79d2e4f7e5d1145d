//! Content negotiation: the format and encoding of bodies and of responses.

use warp::http::HeaderMap;
use warp::http::header::{self, HeaderName};

use super::error::Problem;
use crate::query::RowFormat;
use flow::Encoding;
use flow::decode::{Format, otlp};

/// The formats of rows, in order of preference for a client that has none.
const ROW_FORMATS: [RowFormat; 4] = [
    RowFormat::Json,
    RowFormat::Ndjson,
    RowFormat::Csv,
    RowFormat::Arrow,
];

/// The media type without parameters.
fn essence(format: RowFormat) -> &'static str {
    let media_type = format.media_type();
    media_type
        .split_once(';')
        .map_or(media_type, |(essence, _)| essence)
}

/// Names for UTF-8, and for ASCII, which is a subset of it.
const UTF8: [&str; 5] = ["utf-8", "utf8", "us-ascii", "ascii", ""];

/// The one `Content-Type` of a request.
struct ContentType {
    /// The media type without parameters, in lower case.
    essence: String,
    /// A charset that is not UTF-8.
    foreign_charset: Option<String>,
}

impl ContentType {
    /// `None` if there is no such header.
    fn read(headers: &HeaderMap) -> Result<Option<ContentType>, Problem> {
        let mut values = headers.get_all(header::CONTENT_TYPE).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(Problem::MediaType {
                what: "there is more than one Content-Type".into(),
            });
        }
        let text = String::from_utf8_lossy(value.as_bytes());
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut charsets = parts.filter_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            let is_charset = name.trim().eq_ignore_ascii_case("charset");
            is_charset.then(|| value.trim().trim_matches(['"', '\'']))
        });
        let is_foreign =
            |charset: &&str| !UTF8.iter().any(|name| charset.eq_ignore_ascii_case(name));
        let foreign_charset = charsets.find(is_foreign).map(str::to_owned);
        Ok(Some(ContentType {
            essence,
            foreign_charset,
        }))
    }

    /// # Errors
    /// The body, which is JSON, has another charset.
    fn require_utf8(&self) -> Result<(), Problem> {
        match &self.foreign_charset {
            None => Ok(()),
            Some(charset) => Err(Problem::MediaType {
                what: format!("the charset is {charset:?}; JSON is UTF-8"),
            }),
        }
    }
}

/// The format that `Content-Type` names. A body without the header is decoded as JSON, since it is validated as
/// strictly as any.
pub(super) fn body_format(headers: &HeaderMap) -> Result<Format, Problem> {
    let Some(content_type) = ContentType::read(headers)? else {
        return Ok(Format::Json);
    };
    let essence = &content_type.essence;
    let format = match essence.as_str() {
        "application/json" => Format::Json,
        "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/x-jsonl"
        | "application/jsonlines"
        | "application/x-jsonlines" => Format::Ndjson,
        _ => {
            let hint = match essence.as_str() {
                "application/x-www-form-urlencoded" => {
                    "; curl -d sends this type unless told -H 'Content-Type: application/json'"
                }
                "multipart/form-data" => {
                    "; curl -F sends a form: send the file by itself, as flowtally send FILE does"
                }
                "text/csv" => "; flowtally send FILE reads CSV and sends its flows",
                _ => {
                    "; flowtally send FILE reads JSON, NDJSON, CSV and VPC flow logs, and sends their flows"
                }
            };
            return Err(Problem::MediaType {
                what: format!(
                    "Content-Type is {essence:?}; supported are application/json and \
                     application/x-ndjson{hint}"
                ),
            });
        }
    };
    content_type.require_utf8()?;
    Ok(format)
}

/// Refuses bodies in other formats than one JSON value.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    match body_format(headers)? {
        Format::Json => Ok(()),
        Format::Ndjson => Err(Problem::MediaType {
            what: "the body has to be application/json".into(),
        }),
    }
}

/// The format of an export of OpenTelemetry, for which `Content-Type` is required.
pub(super) fn otlp_format(headers: &HeaderMap) -> Result<otlp::Format, Problem> {
    const SUPPORTED: &str = "supported are application/x-protobuf and application/json";
    let refused = |why: String| Problem::MediaType {
        what: format!("{why}; {SUPPORTED}"),
    };
    let content_type =
        ContentType::read(headers)?.ok_or_else(|| refused("there is no Content-Type".into()))?;
    match content_type.essence.as_str() {
        "application/x-protobuf" => Ok(otlp::Format::Protobuf),
        "application/json" => {
            content_type.require_utf8()?;
            Ok(otlp::Format::Json)
        }
        essence => Err(refused(format!("Content-Type is {essence:?}"))),
    }
}

/// The one encoding that `Content-Encoding` names.
pub(super) fn body_encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let mut encoding = Encoding::Identity;
    for name in list(headers, &header::CONTENT_ENCODING) {
        let next = match name.to_ascii_lowercase().as_str() {
            "identity" => continue,
            "gzip" | "x-gzip" => Encoding::Gzip,
            "zstd" => Encoding::Zstd,
            _ => {
                return Err(Problem::ContentEncoding {
                    what: format!("Content-Encoding is {name:?}; supported are gzip and zstd"),
                });
            }
        };
        if encoding != Encoding::Identity {
            return Err(Problem::ContentEncoding {
                what: "the body is encoded more than once; only once is supported".into(),
            });
        }
        encoding = next;
    }
    Ok(encoding)
}

/// The row format that `Accept` prefers; JSON if it prefers several equally, or is absent.
pub(super) fn row_format(headers: &HeaderMap) -> Result<RowFormat, Problem> {
    let ranges: Vec<(String, u32)> = list(headers, &header::ACCEPT)
        .map(|item| weighted(&item))
        .collect();
    // Absent or empty, which is the same.
    if ranges.is_empty() {
        return Ok(RowFormat::Json);
    }
    let quality = |format: RowFormat| {
        let essence = essence(format);
        let kind = essence.split('/').next().unwrap_or_default();
        // The most specific range that matches decides (RFC 9110, 12.5.1).
        let specificity = |range: &str| match range {
            range if range == essence => Some(2),
            range if range.strip_suffix("/*") == Some(kind) => Some(1),
            // The second is not in RFC 9110, but Java and some old clients send it.
            "*/*" | "*" => Some(0),
            _ => None,
        };
        ranges
            .iter()
            .filter_map(|(range, q)| Some((specificity(range)?, *q)))
            .max()
            .map_or(0, |(_, q)| q)
    };
    best(ROW_FORMATS.map(|format| (format, quality(format)))).ok_or(Problem::NotAcceptable {
        what: "application/json, application/x-ndjson, text/csv and application/vnd.apache.arrow.stream",
    })
}

/// The encoding that `Accept-Encoding` prefers; zstd, then gzip, if it prefers several equally.
pub(super) fn row_encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let possible = [Encoding::Zstd, Encoding::Gzip, Encoding::Identity];
    best(possible.map(|encoding| (encoding, quality(headers, encoding)))).ok_or(
        Problem::NotAcceptable {
            what: "gzip, zstd and identity",
        },
    )
}

/// The same for an asset, which is stored as gzip and can be decompressed.
pub(super) fn asset_encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let possible = [Encoding::Gzip, Encoding::Identity];
    best(possible.map(|encoding| (encoding, quality(headers, encoding)))).ok_or(
        Problem::NotAcceptable {
            what: "gzip and identity",
        },
    )
}

/// The quality of `encoding` in `Accept-Encoding`, in thousandths.
fn quality(headers: &HeaderMap, encoding: Encoding) -> u32 {
    let codings: Vec<(String, u32)> = list(headers, &header::ACCEPT_ENCODING)
        .map(|item| weighted(&item))
        .collect();
    let named = |name: &str| codings.iter().find(|(n, _)| n == name).map(|(_, q)| *q);
    let any = named("*");
    match encoding {
        Encoding::Zstd => named("zstd").or(any).unwrap_or(0),
        Encoding::Gzip => named("gzip").or(named("x-gzip")).or(any).unwrap_or(0),
        // Acceptable unless it is excluded, and the last choice unless it is named.
        Encoding::Identity => named("identity").or(any.filter(|&q| q == 0)).unwrap_or(1),
    }
}

/// The first choice of the highest quality above 0.
fn best<T, const N: usize>(choices: [(T, u32); N]) -> Option<T> {
    let mut best: Option<(T, u32)> = None;
    for (choice, quality) in choices {
        if quality > best.as_ref().map_or(0, |(_, q)| *q) {
            best = Some((choice, quality));
        }
    }
    best.map(|(choice, _)| choice)
}

/// Whether `If-None-Match` shows that the client has the representation with `tag` (RFC 9110, 13.1.2).
pub(super) fn has_current(headers: &HeaderMap, tag: &str) -> bool {
    let strong = tag.trim_start_matches("W/");
    let mut known = list(headers, &header::IF_NONE_MATCH);
    known.any(|known| known == "*" || known.trim_start_matches("W/") == strong)
}

/// The comma-separated items of a header, over all its lines.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + use<'a> {
    headers.get_all(name).iter().flat_map(|value| {
        String::from_utf8_lossy(value.as_bytes())
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect::<Vec<_>>()
    })
}

/// An item and its quality in thousandths: `text/csv;q=0.5` is ("text/csv", 500).
fn weighted(item: &str) -> (String, u32) {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default().to_ascii_lowercase();
    let quality = parts
        .filter_map(|p| p.split_once('='))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
        .and_then(|(_, q)| q.trim().parse::<f32>().ok())
        .map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u32);
    (name, quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn accept_picks_the_format() {
        for (accept, format) in [
            ("*/*", Some(RowFormat::Json)),
            ("application/*", Some(RowFormat::Json)),
            ("application/json", Some(RowFormat::Json)),
            ("application/x-ndjson", Some(RowFormat::Ndjson)),
            ("text/csv", Some(RowFormat::Csv)),
            ("TEXT/CSV", Some(RowFormat::Csv)),
            (
                "application/vnd.apache.arrow.stream",
                Some(RowFormat::Arrow),
            ),
            (
                "application/vnd.apache.arrow.stream, */*;q=0.1",
                Some(RowFormat::Arrow),
            ),
            ("application/vnd.apache.arrow.file", None),
            ("text/*", Some(RowFormat::Csv)),
            ("text/html, */*;q=0.1", Some(RowFormat::Json)),
            (
                "text/csv;q=0.9, application/json;q=0.8",
                Some(RowFormat::Csv),
            ),
            ("application/json;q=0, */*", Some(RowFormat::Ndjson)),
            ("", Some(RowFormat::Json)),
            (" , ", Some(RowFormat::Json)),
            ("*", Some(RowFormat::Json)),
            (
                "text/html, image/gif, *; q=.2, */*; q=.2",
                Some(RowFormat::Json),
            ),
            ("*;q=0.1, text/csv", Some(RowFormat::Csv)),
            ("text/html", None),
            ("application/json;q=0", None),
            ("*;q=0", None),
        ] {
            let got = row_format(&headers(header::ACCEPT, accept)).ok();
            assert_eq!(got.map(essence), format.map(essence), "{accept}");
        }
        let default = row_format(&HeaderMap::new()).ok();
        assert!(matches!(default, Some(RowFormat::Json)));
    }

    #[test]
    fn content_type_names_the_format() {
        for (media_type, format) in [
            ("application/json", Some(Format::Json)),
            ("", None),
            ("Application/JSON; charset=utf8", Some(Format::Json)),
            ("application/json;charset=UTF8", Some(Format::Json)),
            ("application/json; charset=\"utf-8\"", Some(Format::Json)),
            ("application/json; charset='ASCII'", Some(Format::Json)),
            ("application/json;", Some(Format::Json)),
            ("application/json; charset=", Some(Format::Json)),
            ("application/jsonlines; charset=utf8", Some(Format::Ndjson)),
            ("application/json; charset=utf-16", None),
            ("application/json; charset=latin1", None),
            ("application/x-www-form-urlencoded", None),
            ("text/plain", None),
        ] {
            let got = body_format(&headers(header::CONTENT_TYPE, media_type)).ok();
            assert_eq!(got, format, "{media_type}");
        }
    }

    #[test]
    fn content_type_names_the_format_of_an_export() {
        use otlp::Format::{Json, Protobuf};
        for (media_type, format) in [
            ("application/x-protobuf", Some(Protobuf)),
            ("Application/X-Protobuf; messageType=x", Some(Protobuf)),
            ("application/json; charset=utf-8", Some(Json)),
            ("application/json; charset=latin1", None),
            ("application/x-ndjson", None),
            ("application/grpc", None),
            ("", None),
        ] {
            let got = otlp_format(&headers(header::CONTENT_TYPE, media_type)).ok();
            assert_eq!(got, format, "{media_type}");
        }
        assert!(otlp_format(&HeaderMap::new()).is_err());
    }

    #[test]
    fn an_unsupported_content_type_has_a_remedy() {
        for (media_type, step) in [
            ("multipart/form-data; boundary=x", "curl -F sends a form"),
            ("multipart/form-data", "flowtally send FILE"),
            ("text/csv", "flowtally send FILE"),
            ("text/plain", "flowtally send FILE"),
            ("application/x-www-form-urlencoded", "curl -d"),
        ] {
            match body_format(&headers(header::CONTENT_TYPE, media_type)) {
                Err(Problem::MediaType { what }) => assert!(what.contains(step), "{what}"),
                _ => panic!("{media_type}"),
            }
        }
    }

    #[test]
    fn accept_encoding_picks_the_encoding() {
        for (accept, encoding) in [
            ("gzip", Some(Encoding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Encoding::Zstd)),
            ("gzip;q=1, zstd;q=0.5", Some(Encoding::Gzip)),
            ("br", Some(Encoding::Identity)),
            ("identity", Some(Encoding::Identity)),
            ("gzip;q=0", Some(Encoding::Identity)),
            ("*", Some(Encoding::Zstd)),
            ("identity;q=0, gzip", Some(Encoding::Gzip)),
            ("identity;q=0", None),
            ("*;q=0", None),
            ("*;q=0, gzip", Some(Encoding::Gzip)),
        ] {
            let got = row_encoding(&headers(header::ACCEPT_ENCODING, accept)).ok();
            assert_eq!(got, encoding, "{accept}");
        }
        let none = row_encoding(&HeaderMap::new()).ok();
        assert_eq!(none, Some(Encoding::Identity));
    }
}
