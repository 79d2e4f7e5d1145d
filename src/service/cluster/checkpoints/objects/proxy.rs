//! Chooses the proxy for an object store, by the rules of the command line's client ([`Proxy`]). The library's own rules
//! would use a proxy even for an object store on this machine.

use object_store::ClientConfigKey;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use agent::client::{ClientError, Proxy, no_proxy_entries};

/// Default endpoints.
const S3: &str = "https://s3.amazonaws.com";
const GCS: &str = "https://storage.googleapis.com";
/// Hosts that are always reached without a proxy: this machine, and the metadata services of clouds.
const DIRECT: [&str; 6] = [
    "localhost",
    "127.0.0.0/8",
    "::1",
    "169.254.0.0/16",
    "fd00:ec2::254",
    "metadata.google.internal",
];
/// Matches all hosts.
const EVERYTHING: &str = "*,0.0.0.0/0,::/0";
/// A proxy that is used for no host.
const NONE: &str = "http://127.0.0.1:9";

pub(super) fn s3(bucket: AmazonS3Builder) -> Result<AmazonS3Builder, ClientError> {
    let key = AmazonS3ConfigKey::Client;
    // The operator has set one explicitly.
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

/// The proxy, and the hosts that are reached without it.
fn settings(endpoint: &str) -> Result<(String, String), ClientError> {
    Ok(match Proxy::for_url(endpoint)? {
        Some(proxy) => {
            let direct = DIRECT
                .map(str::to_owned)
                .into_iter()
                .chain(no_proxy_entries());
            (proxy.url(), direct.collect::<Vec<_>>().join(","))
        }
        None => (NONE.into(), EVERYTHING.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without variables, as in tests, and for this machine always, no proxy is used.
    #[test]
    fn an_object_store_on_this_machine_needs_no_proxy() {
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
