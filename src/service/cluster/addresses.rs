//! The directory of addresses on each node: a node that gets an agent's claims sends them to all nodes by a topic.

use std::sync::Arc;

use super::kafka::{KafkaError, KafkaSettings, KeyedTopic, MESSAGE_BYTES_MAX, Producer};
use crate::directory::Directory;
use crate::service::ServiceError;
use flow::directory::DirectoryRequest;

/// Level of compression: claims are sent often, and are short.
const ZSTD_LEVEL: i32 = 1;
/// Claims after decompression.
const PLAIN_BYTES_MAX: usize = 16 << 20;

/// This node's copy of the directory, and the topic that all nodes share.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) directory: Arc<Directory>,
    topic: KeyedTopic,
}

impl Addresses {
    pub(super) fn open(
        settings: &KafkaSettings,
        producer: &Producer,
        bytes_max: usize,
    ) -> Result<Addresses, KafkaError> {
        let directory = Arc::new(Directory::new(bytes_max));
        let copy = directory.clone();
        let receive = move |message: &[u8]| match read(message) {
            Some(request) => {
                // The sender was told if its own node had no room. Other nodes have as much.
                if let Err(full) = copy.renew(request) {
                    tracing::debug!(%full, "claims of another node's agent not taken");
                }
            }
            None => tracing::warn!("message in the topic of addresses ignored"),
        };
        let topic = KeyedTopic::open(settings, &settings.directory_topic(), producer, receive)?;
        Ok(Addresses { directory, topic })
    }

    /// Takes an agent's claims, and sends them to all nodes.
    pub(super) async fn renew(&self, request: DirectoryRequest) -> Result<(), ServiceError> {
        let agent = request.agent.clone();
        let unavailable = |why: &dyn std::fmt::Display| {
            let why = format!("{why}; flows are not affected");
            ServiceError::DirectoryUnavailable(why)
        };
        let json = serde_json::to_vec(&request).map_err(|e| unavailable(&e))?;
        let message = zstd::bulk::compress(&json, ZSTD_LEVEL).map_err(|e| unavailable(&e))?;
        if agent.len() + message.len() > MESSAGE_BYTES_MAX {
            return Err(unavailable(
                &"the agent has too many claims for one message of Kafka",
            ));
        }
        let renewed = self.directory.renew(request);
        renewed.map_err(|full| ServiceError::DirectoryUnavailable(full.to_string()))?;
        let sent = self.topic.send(&agent, &message).await;
        sent.map(drop).map_err(|e| unavailable(&e))
    }
}

fn read(message: &[u8]) -> Option<DirectoryRequest> {
    let json = zstd::bulk::decompress(message, PLAIN_BYTES_MAX).ok()?;
    let request: DirectoryRequest = serde_json::from_slice(&json).ok()?;
    Directory::validate(&request).ok()?;
    Some(request)
}
