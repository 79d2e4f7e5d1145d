//! Byte counters of a TCP socket, from `struct tcp_info` of Linux (include/uapi/linux/tcp.h).

use flow::Counters;

/// Offsets of the fields, which the kernel only ever appends to.
const LAST_DATA_RECV: usize = 52;
const LAST_ACK_RECV: usize = 56;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const NOTSENT_BYTES: usize = 144;
const BYTES_SENT: usize = 200;
const BYTES_RETRANS: usize = 208;

/// The counters of a socket at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TcpInfo {
    /// Sequence numbers that the peer has acknowledged: bytes, the SYN if this end sent it first, and the FIN.
    pub(super) acked: u64,
    /// Sequence numbers that arrived in order: bytes, and the FIN.
    pub(super) received: u64,
    /// Bytes that were sent once or more; `None` before Linux 4.19.
    pub(super) sent: Option<u64>,
    /// Bytes that the program has written, and that were not sent yet.
    pub(super) unsent: u32,
    /// Milliseconds since the last packet of the peer.
    pub(super) heard_ago: u64,
}

impl TcpInfo {
    /// Parses the attribute `INET_DIAG_INFO`. `None` if it lacks the counters, as before Linux 4.1.
    pub(super) fn parse(bytes: &[u8]) -> Option<TcpInfo> {
        let sent = at::<u64>(bytes, BYTES_SENT).zip(at::<u64>(bytes, BYTES_RETRANS));
        Some(TcpInfo {
            acked: at(bytes, BYTES_ACKED)?,
            received: at(bytes, BYTES_RECEIVED)?,
            sent: sent.map(|(sent, again)| sent.saturating_sub(again)),
            unsent: at(bytes, NOTSENT_BYTES).unwrap_or_default(),
            // An ACK that acknowledges nothing new does not count as one, and neither does data that comes with it.
            heard_ago: at::<u32>(bytes, LAST_ACK_RECV)?
                .min(at(bytes, LAST_DATA_RECV)?)
                .into(),
        })
    }

    /// Sequence numbers of this end that are not bytes: its SYN, if it has opened the connection, and its FIN, when it is
    /// sent. `unacked` is what the peer has not acknowledged, and what was not sent yet. `None` if it cannot be told.
    pub(super) fn not_bytes(&self, unacked: u32) -> Option<u64> {
        let in_flight = u64::from(unacked.checked_sub(self.unsent)?);
        (self.acked + in_flight).checked_sub(self.sent?)
    }

    /// The bytes of the end that opened the connection: those that the peer has acknowledged, and those received.
    pub(super) fn bytes(&self, has_received_fin: bool) -> Counters {
        let acked = self.acked.saturating_sub(1);
        Counters {
            tx: self.sent.map_or(acked, |sent| acked.min(sent)),
            rx: self.received.saturating_sub(has_received_fin.into()),
        }
    }
}

/// The number at an offset.
fn at<T: Number>(bytes: &[u8], offset: usize) -> Option<T> {
    T::parse(bytes.get(offset..offset + size_of::<T>())?)
}

trait Number: Sized {
    fn parse(bytes: &[u8]) -> Option<Self>;
}

impl Number for u64 {
    fn parse(bytes: &[u8]) -> Option<u64> {
        bytes.try_into().ok().map(u64::from_ne_bytes)
    }
}

impl Number for u32 {
    fn parse(bytes: &[u8]) -> Option<u32> {
        bytes.try_into().ok().map(u32::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_info(length: usize, values: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (offset, value) in values {
            bytes[*offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn syn_and_fin_are_not_bytes() {
        let all = [
            (BYTES_ACKED, 102),
            (BYTES_RECEIVED, 301),
            (BYTES_SENT, 150),
            (BYTES_RETRANS, 50),
        ];
        let info = TcpInfo::parse(&tcp_info(240, &all)).unwrap();
        assert_eq!(info.not_bytes(0), Some(2));
        assert_eq!(info.bytes(true), Counters { tx: 100, rx: 300 });
        assert_eq!(info.bytes(false), Counters { tx: 100, rx: 301 });
    }

    /// Also while bytes are in flight, and while some were not sent yet.
    #[test]
    fn the_end_that_has_opened_a_connection_has_sent_a_syn() {
        let values = |acked| {
            [
                (BYTES_ACKED, acked),
                (BYTES_SENT, 1000),
                (NOTSENT_BYTES, 50),
            ]
        };
        for (acked, unacked, not_bytes) in [(701, 350, 1), (700, 350, 0), (1001, 50, 1)] {
            let info = TcpInfo::parse(&tcp_info(240, &values(acked))).unwrap();
            assert_eq!(info.not_bytes(unacked), Some(not_bytes));
        }
        let info = TcpInfo::parse(&tcp_info(240, &values(1))).unwrap();
        assert_eq!(info.not_bytes(0), None);
    }

    /// A connection attempt without an answer has no acknowledged SYN.
    #[test]
    fn an_unanswered_connection_has_no_bytes() {
        let info = TcpInfo::parse(&tcp_info(240, &[])).unwrap();
        assert_eq!(info.bytes(false), Counters::default());
    }

    #[test]
    fn older_kernels_have_fewer_counters() {
        let acked = [(BYTES_ACKED, 102), (BYTES_RECEIVED, 300)];
        let info = TcpInfo::parse(&tcp_info(192, &acked)).unwrap();
        assert_eq!(info.not_bytes(0), None);
        assert_eq!(info.bytes(false), Counters { tx: 101, rx: 300 });
        assert_eq!(TcpInfo::parse(&tcp_info(104, &[])), None);
    }
}
