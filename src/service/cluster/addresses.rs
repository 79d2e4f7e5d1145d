//! The directory of addresses on each node: a node that gets an agent's claims sends them to all nodes by a topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::kafka::{KafkaError, KafkaSettings, KeyedTopic, MESSAGE_BYTES_MAX};
use crate::directory::{Directory, now_ms};
use crate::service::ClaimsRefused;
use flow::directory::DirectoryRequest;

/// Level of compression: claims are sent often, and are short.
const ZSTD_LEVEL: i32 = 1;
/// Claims after decompression.
const PLAIN_BYTES_MAX: usize = 16 << 20;
/// A node reads a message within this time after it was acknowledged.
const READ_MS_MAX: u64 = 10_000;

/// This node's copy of the directory, and the topic that all nodes share.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) directory: Arc<Directory>,
    topic: KeyedTopic,
    /// When Kafka acknowledged the last message of this node, and when this node read the last one of any.
    sent_at: AtomicU64,
    read_at: Arc<AtomicU64>,
}

impl Addresses {
    pub(super) fn open(
        settings: &KafkaSettings,
        bytes_max: usize,
    ) -> Result<Addresses, KafkaError> {
        let directory = Arc::new(Directory::new(bytes_max));
        let read_at = Arc::new(AtomicU64::new(0));
        let (copy, at) = (directory.clone(), read_at.clone());
        let receive = move |message: &[u8]| {
            at.store(now_ms(), Ordering::Relaxed);
            match read(message) {
                Some(request) => {
                    // The directory knows then that it is not complete.
                    if let Err(full) = copy.renew(request) {
                        tracing::debug!(%full, "claims of another node's agent not taken");
                    }
                }
                None => tracing::warn!("message in the topic of addresses ignored"),
            }
        };
        let topic = KeyedTopic::open(settings, &settings.directory_topic(), receive)?;
        Ok(Addresses {
            directory,
            topic,
            sent_at: AtomicU64::new(0),
            read_at,
        })
    }

    /// Takes an agent's claims, and sends them to all nodes.
    pub(super) async fn renew(&self, request: DirectoryRequest) -> Result<(), ClaimsRefused> {
        let (directory, agent) = (self.directory.clone(), request.agent.clone());
        let renew = move || {
            let message = write(&request)?;
            directory.renew(request).map_err(|full| full.to_string())?;
            Ok(message)
        };
        let renewed = tokio::task::spawn_blocking(renew).await;
        let renewed = renewed.map_err(|e| ClaimsRefused(e.to_string()))?;
        let message = renewed.map_err(ClaimsRefused)?;
        let sent = self.topic.send(&agent, &message).await;
        match sent {
            Ok(_) => {
                self.sent_at.store(now_ms(), Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(ClaimsRefused(error.to_string())),
        }
    }

    /// Whether this node reads what the others have sent: it has read something since it sent its last message, or that
    /// was a moment ago.
    pub(super) fn is_current(&self) -> bool {
        let sent_at = self.sent_at.load(Ordering::Relaxed);
        let read_at = self.read_at.load(Ordering::Relaxed);
        read_at >= sent_at || now_ms() < sent_at + READ_MS_MAX
    }
}

/// The message with the claims in `request`, or why there is none.
fn write(request: &DirectoryRequest) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(request).map_err(|e| e.to_string())?;
    let message = zstd::bulk::compress(&json, ZSTD_LEVEL).map_err(|e| e.to_string())?;
    if json.len() > PLAIN_BYTES_MAX || request.agent.len() + message.len() > MESSAGE_BYTES_MAX {
        return Err("the agent has too many claims for one message of Kafka".into());
    }
    Ok(message)
}

fn read(message: &[u8]) -> Option<DirectoryRequest> {
    let json = zstd::bulk::decompress(message, PLAIN_BYTES_MAX).ok()?;
    let request: DirectoryRequest = serde_json::from_slice(&json).ok()?;
    Directory::validate(&request).ok()?;
    Some(request)
}
