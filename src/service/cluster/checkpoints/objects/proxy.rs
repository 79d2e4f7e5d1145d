//! The proxy to an object store, by the rules that all clients of this program go by: see `client`. What the
//! library would take from variables by itself sends this machine's own object store through a proxy, too.

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use crate::client::{ClientError, Proxy, not_by_proxy};

/// Where a bucket is, unless the variables say something else.
const S3: &str = "https://s3.amazonaws.com";
const GCS: &str = "https://storage.googleapis.com";
/// Reached directly, whatever the bucket is: this machine, and where a cloud hands out keys.
const DIRECT: [&str; 6] = [
    "localhost",
    "127.0.0.0/8",
    "::1",
    "169.254.0.0/16",
    "fd00:ec2::254",
    "metadata.google.internal",
];
/// All of them.
const EVERYTHING: &str = "*,0.0.0.0/0,::/0";
/// A proxy that nothing goes through.
const NONE: &str = "http://127.0.0.1:9";

pub(super) fn s3(bucket: AmazonS3Builder) -> Result<AmazonS3Builder, ClientError> {
    let key = AmazonS3ConfigKey::Client;
    // Said for this bucket alone.
    if bucket
        .get_config_value(&key(ClientConfigKey::ProxyUrl))
        .is_some()
    {
        return Ok(bucket);
    }
    let endpoint = bucket
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| bucket.get_config_value(&AmazonS3ConfigKey::Endpoint));
    let (proxy, direct) = settings(endpoint.as_deref().unwrap_or(S3))?;
    Ok(bucket
        .with_config(key(ClientConfigKey::ProxyUrl), proxy)
        .with_config(key(ClientConfigKey::ProxyExcludes), direct))
}

pub(super) fn gcs(
    bucket: GoogleCloudStorageBuilder,
) -> Result<GoogleCloudStorageBuilder, ClientError> {
    let key = GoogleConfigKey::Client;
    if bucket
        .get_config_value(&key(ClientConfigKey::ProxyUrl))
        .is_some()
    {
        return Ok(bucket);
    }
    let (proxy, direct) = settings(GCS)?;
    Ok(bucket
        .with_config(key(ClientConfigKey::ProxyUrl), proxy)
        .with_config(key(ClientConfigKey::ProxyExcludes), direct))
}

/// A proxy, and what is reached without it.
fn settings(endpoint: &str) -> Result<(String, String), ClientError> {
    Ok(match Proxy::of(endpoint)? {
        Some(proxy) => {
            let direct = DIRECT.map(str::to_owned).into_iter().chain(not_by_proxy());
            (proxy.url(), direct.collect::<Vec<_>>().join(","))
        }
        None => (NONE.into(), EVERYTHING.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where no variable is set, as in tests, and for this machine always, nothing goes through a proxy.
    #[test]
    fn an_object_store_on_this_machine_is_reached_directly() {
        for endpoint in [
            "http://127.0.0.1:9000",
            "http://localhost:9000",
            "http://[::1]:9000",
        ] {
            let (proxy, direct) = settings(endpoint).unwrap();
            assert_eq!((proxy.as_str(), direct.as_str()), (NONE, EVERYTHING));
        }
        assert!(settings("http://no url").is_err());
    }
}
