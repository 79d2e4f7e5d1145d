//! Both ends of a conversation: each network interface has its own records of the bytes it sent and received.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Flow;
use super::header::{Columns, Field};
use crate::inputs::Apps;

/// The number of conversations that are remembered to detect that both ends are recorded: 256 KiB.
const CONVERSATIONS_MAX: usize = 1 << 14;

/// The records that count if both ends of a conversation are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Count {
    /// The sending interface's.
    Sender,
    /// The receiving interface's.
    Receiver,
    /// All records.
    #[default]
    Both,
}

impl Count {
    pub(super) fn name(self) -> &'static str {
        match self {
            Count::Sender => "sender",
            Count::Receiver => "receiver",
            Count::Both => "both",
        }
    }
}

/// Receives the warning that sums may be misleading.
type Warn = Box<dyn Fn(&str) + Send>;

/// Options for reading flow logs.
#[derive(Default)]
pub(in crate::inputs) struct FlowLogs {
    pub(in crate::inputs) apps: Arc<Apps>,
    pub(in crate::inputs) count: Count,
    /// Called at most once per input.
    pub(in crate::inputs) warn: Option<Warn>,
}

impl fmt::Debug for FlowLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowLogs")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl FlowLogs {
    /// Whether the fields are sufficient to select the records of one end.
    pub(super) fn validate(&self, columns: Columns) -> Result<Columns, String> {
        match columns.at(Field::FlowDirection) {
            None if self.count != Count::Both => Err(format!(
                "it has no flow-direction, so the end at which a record was made is unknown, and --count {} \
                 cannot be applied; add that field to the flow log, or read the logs of one end only, without \
                 --count",
                self.count.name()
            )),
            _ => Ok(columns),
        }
    }

    /// Warns that both ends count.
    pub(super) fn warn(&self, flow: &Flow<'_>, line: u64) {
        let Some(warn) = &self.warn else {
            return;
        };
        let remedy = match flow.direction {
            Some(_) => "--count sender or --count receiver counts the records of one end only",
            None => {
                "without flow-direction, its ends cannot be distinguished: add that field to the flow log, or read \
                 the logs of one end only"
            }
        };
        warn(&format!(
            "line {line}: traffic from {} to {} is recorded at more than one interface, and counts at each; \
             {remedy} (docs/directions.md)",
            flow.source.0, flow.destination.0
        ));
    }
}

/// Detects that a conversation is recorded at two interfaces.
#[derive(Default)]
pub(super) struct Ends {
    /// The fingerprints of a conversation and of the interface of its last record. A conversation may evict
    /// another from its slot: the purpose is to detect that such conversations exist, not to list them.
    remembered: Vec<(u64, u64)>,
    noticed: bool,
}

impl Ends {
    /// Whether bytes of this conversation in this direction were recorded before at the other interface or in
    /// the other direction. Returns true only once.
    pub(super) fn notice(&mut self, flow: &Flow<'_>) -> bool {
        let is_known = flow.direction.is_some() || !flow.interface.is_empty();
        if self.noticed || !is_known {
            return false;
        }
        if self.remembered.is_empty() {
            self.remembered.resize(CONVERSATIONS_MAX, (0, 0));
        }
        let mut addresses = [0; 32];
        let (source, destination) = addresses.split_at_mut(16);
        source.copy_from_slice(&octets(flow.source.0));
        destination.copy_from_slice(&octets(flow.destination.0));
        let conversation = xxh3_64(&addresses);
        let direction = flow.direction.map_or(0, |direction| direction as u64 + 1);
        let end = xxh3_64_with_seed(flow.interface.as_bytes(), direction);
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
