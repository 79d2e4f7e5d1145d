//! Sends what happens in the shop now, as an agent would: a batch every two seconds, each under a key.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::shop::{HOUR_MS, Shop};
use agent::client::{Client, ClientError};
use flow::IdempotencyKey;

/// Time between two batches.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest time of a batch, after the machine has slept: the next batches have the rest.
const BATCH_MS_MAX: u64 = 24 * HOUR_MS;

/// The time, in milliseconds since the epoch.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Sends the flows from `sent` on, in milliseconds since the epoch, until `stop`. A batch that the service did not
/// acknowledge is sent again under its key, so that it counts once.
pub(super) async fn send(client: Client, shop: Arc<Shop>, mut sent: u64, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The end of a batch that was sent, but not acknowledged.
    let mut pending = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let end = pending.unwrap_or_else(|| now_ms().min(sent + BATCH_MS_MAX));
        if end <= sent {
            // The clock was set back.
            continue;
        }
        let (client, shop) = (client.clone(), shop.clone());
        let attempt = move || post(&client, &shop, sent, end);
        match tokio::task::spawn_blocking(attempt).await {
            Ok(Ok(())) => (sent, pending) = (end, None),
            Ok(Err(error)) => {
                pending = Some(end);
                if !stop.is_cancelled() {
                    tracing::warn!(%error, "flows not sent; trying again");
                }
            }
            // It was cancelled or has panicked, which was printed.
            Err(_) => return,
        }
    }
}

fn post(client: &Client, shop: &Shop, from: u64, to: u64) -> Result<(), ClientError> {
    let key = format!("flowtally-demo/{from}/{to}");
    let key = IdempotencyKey::new(key.as_bytes());
    let key = key.ok_or_else(|| ClientError::Options("a key is too long".into()))?;
    client.post_flows(&key, &shop.flows(from, to))
}
