//! `GET /`: the web page; and the assets of the service's pages, below `/assets/`.
//!
//! All of it is in the binary as gzip, and the page loads nothing from other hosts. The page needs no permission: it
//! requests its data from the API, with a token if the API requires one.

use std::io::Read;
use std::sync::LazyLock;

use askama::Template;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use futures_util::stream::{self, Stream};
use warp::http::StatusCode;
use warp::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::Problem;
use super::negotiate;
use flow::Encoding;

/// The sample day, which the page sends on request.
const SAMPLE_DAY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sample-day.ndjson.gz"));
/// Upper bound of its part of the binary.
const SAMPLE_DAY_BYTES_MAX: usize = 64 << 10;
const _: () = assert!(SAMPLE_DAY.len() <= SAMPLE_DAY_BYTES_MAX);

/// The assets of the pages, as `build.rs` made them.
static ASSETS: [Asset; 4] = [
    Asset {
        name: "page.css",
        media_type: "text/css; charset=utf-8",
        gzip: include_bytes!(concat!(env!("OUT_DIR"), "/page.css.gz")),
    },
    Asset {
        name: "page.js",
        media_type: "text/javascript; charset=utf-8",
        gzip: include_bytes!(concat!(env!("OUT_DIR"), "/page.js.gz")),
    },
    Asset {
        name: "sample-day.ndjson",
        media_type: "application/x-ndjson",
        gzip: SAMPLE_DAY,
    },
    Asset {
        name: "docs.css",
        media_type: "text/css; charset=utf-8",
        gzip: include_bytes!(concat!(env!("OUT_DIR"), "/docs.css.gz")),
    },
];

/// Allows the page's own scripts and styles, and requests to this service. A name that a client sent cannot become a
/// script, a style, an image from another host or the target of a form.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The path of an asset has a hash of its content, so the content never changes.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// A page may have changed with the service's version.
const REVALIDATE: &str = "no-cache";
/// Bytes per step of decompression for a client that does not accept gzip.
const CHUNK_BYTES: usize = 64 << 10;

static SITE: LazyLock<Site> = LazyLock::new(Site::new);

#[derive(Debug)]
pub(super) struct Asset {
    name: &'static str,
    media_type: &'static str,
    gzip: &'static [u8],
}

#[derive(Template)]
#[template(path = "index.html")]
struct Index<'a> {
    /// Path of the assets, relative to the page.
    assets: &'a str,
    version: &'a str,
}

/// A page that was rendered, as gzip.
pub(super) struct Html {
    gzip: Bytes,
    hash: String,
}

impl Html {
    pub(super) fn new(html: &str) -> Html {
        let mut gzip = Vec::new();
        let mut encoder = GzEncoder::new(html.as_bytes(), Compression::best());
        let _from_memory = encoder.read_to_end(&mut gzip);
        Html {
            gzip: gzip.into(),
            hash: format!("{:016x}", xxh3_64(html.as_bytes())),
        }
    }

    pub(super) fn respond(&self, headers: &HeaderMap) -> Result<Response, Problem> {
        let html = "text/html; charset=utf-8";
        respond(headers, self.gzip.clone(), html, &self.hash, REVALIDATE)
    }
}

/// The page as rendered at the first request.
struct Site {
    /// The hash of all assets together, since they load each other.
    hash: String,
    index: Html,
}

impl Site {
    fn new() -> Site {
        let mut all = Xxh3::new();
        ASSETS.iter().for_each(|asset| all.update(asset.gzip));
        let hash = format!("{:016x}", all.digest());
        let index = Index {
            assets: &format!("assets/{hash}"),
            version: env!("CARGO_PKG_VERSION"),
        };
        // Rendering two strings cannot fail.
        let index = Html::new(&index.render().unwrap_or_default());
        Site { hash, index }
    }
}

/// The path of the assets, relative to a page at the root.
pub(super) fn assets() -> String {
    format!("assets/{}", SITE.hash)
}

/// The asset at `path`, if there is one.
pub(super) fn asset(path: &str) -> Option<&'static Asset> {
    let rest = path.strip_prefix("/assets/")?;
    let name = rest.strip_prefix(SITE.hash.as_str())?.strip_prefix('/')?;
    ASSETS.iter().find(|asset| asset.name == name)
}

/// The page. Only its script reads the query string.
pub(super) fn index(headers: &HeaderMap) -> Result<Response, Problem> {
    SITE.index.respond(headers)
}

/// An asset of the page.
pub(super) fn file(headers: &HeaderMap, asset: &'static Asset) -> Result<Response, Problem> {
    let gzip = Bytes::from_static(asset.gzip);
    respond(headers, gzip, asset.media_type, &SITE.hash, IMMUTABLE)
}

fn respond(
    headers: &HeaderMap,
    gzip: Bytes,
    media_type: &'static str,
    hash: &str,
    cache: &'static str,
) -> Result<Response, Problem> {
    let encoding = negotiate::asset_encoding(headers)?;
    // Weak: it is the same for all encodings.
    let tag = format!("W/\"{hash}\"");
    let mut response = if negotiate::has_current(headers, &tag) {
        let mut response = Response::new(Bytes::new().into());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if encoding == Encoding::Gzip {
        Response::new(gzip.into())
    } else {
        warp::reply::stream(decompressed(gzip)).into_response()
    };
    if let Some(encoding) = encoding.name() {
        let value = HeaderValue::from_static(encoding);
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, value);
    }
    let fixed: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, cache),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// Decompresses `gzip` chunk by chunk, so that a slow client holds no more than one chunk in memory.
fn decompressed(
    gzip: Bytes,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Sync + 'static {
    let decoder = GzDecoder::new(std::io::Cursor::new(gzip));
    stream::try_unfold(decoder, |mut decoder| async {
        let mut part = Vec::new();
        decoder
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut part)?;
        Ok((!part.is_empty()).then(|| (Bytes::from(part), decoder)))
    })
}
