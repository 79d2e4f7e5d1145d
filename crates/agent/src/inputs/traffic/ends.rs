//! Both ends of a conversation: each network interface may have its own records of the bytes that it sent and received.

use std::net::IpAddr;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Traffic;

/// The number of conversations that are remembered to detect that both ends are recorded: 256 KiB.
const CONVERSATIONS_MAX: usize = 1 << 14;

/// Detects that a conversation is recorded at two interfaces.
#[derive(Default)]
pub(in crate::inputs) struct Ends {
    /// The fingerprints of a conversation and of the interface of its last record. A conversation may evict
    /// another from its slot: the purpose is to detect that such conversations exist, not to list them.
    remembered: Vec<(u64, u64)>,
    noticed: bool,
}

impl Ends {
    /// Whether bytes of this conversation in this direction were recorded before at the other interface or in
    /// the other direction. Returns true only once.
    pub(in crate::inputs) fn notice(&mut self, traffic: &Traffic<'_>) -> bool {
        let is_known = traffic.direction.is_some() || !traffic.interface.is_empty();
        if self.noticed || !is_known {
            return false;
        }
        if self.remembered.is_empty() {
            self.remembered.resize(CONVERSATIONS_MAX, (0, 0));
        }
        let mut addresses = [0; 32];
        let (source, destination) = addresses.split_at_mut(16);
        source.copy_from_slice(&octets(traffic.source.address));
        destination.copy_from_slice(&octets(traffic.destination.address));
        let conversation = xxh3_64(&addresses);
        let direction = traffic
            .direction
            .map_or(0, |direction| direction as u64 + 1);
        let end = xxh3_64_with_seed(traffic.interface.as_bytes(), direction);
        let slot = &mut self.remembered[conversation as usize % CONVERSATIONS_MAX];
        self.noticed = slot.0 == conversation && slot.1 != end;
        *slot = (conversation, end);
        if self.noticed {
            self.remembered = Vec::new();
        }
        self.noticed
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
