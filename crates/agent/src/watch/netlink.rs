//! Messages from and to the kernel (`man 7 netlink`).

use std::fmt::Debug;
use std::io::{self, ErrorKind};

use netlink_packet_core::{
    DecodeError, NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::Socket;
use rustix::io::Errno;

/// Of one read; the kernel sends a dump in messages of at most 32 KiB.
pub(super) const READ_BYTES: usize = 64 << 10;
/// A message begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// Sends one request.
pub(super) fn send<M: NetlinkSerializable>(
    socket: &Socket,
    request: M,
    flags: u16,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    push(&mut bytes, request, flags, 0);
    socket.send(&bytes, 0).map(drop)
}

/// Appends a request. Several of them may be sent at once: the kernel answers each, under its `sequence` number.
pub(super) fn push<M: NetlinkSerializable>(
    bytes: &mut Vec<u8>,
    request: M,
    flags: u16,
    sequence: u32,
) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let start = bytes.len().next_multiple_of(ALIGNMENT);
    bytes.resize(start + message.buffer_len(), 0);
    message.serialize(&mut bytes[start..]);
}

/// Reads once, and calls `each` with the messages. Returns whether more of a dump follows.
pub(super) fn read<M: NetlinkDeserializable + Debug>(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(M),
) -> io::Result<bool> {
    receive(socket, buffer, 0)?;
    let mut rest = &buffer[..];
    let mut is_multipart = false;
    while !rest.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(rest).map_err(invalid)?;
        let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
        is_multipart = message.header.flags & NLM_F_MULTIPART != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => each(message),
            NetlinkPayload::Done(done) if done.code < 0 => return Err(failure(done.code)),
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
        rest = rest.get(length.max(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(is_multipart)
}

/// Reads a datagram, which has one message or several. `flags` are those of `man 2 recv`.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>, flags: i32) -> io::Result<()> {
    buffer.clear();
    socket.recv(buffer, flags).map(drop)
}

/// A message, in the buffer that it was read into.
#[derive(Debug)]
pub(super) struct Message<'a> {
    /// That of the request that it answers.
    pub(super) sequence: u32,
    pub(super) content: Content<'a>,
}

/// What a message says.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Something of the protocol.
    Payload(&'a [u8]),
    /// The dump is complete.
    Done,
    /// The request has failed.
    Failed(io::Error),
    Nothing,
}

/// The messages of a datagram. Unlike [`read`], it copies nothing, which matters where there are thousands a second.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(rest) {
            Ok(message) => message,
            Err(error) => {
                rest = &[];
                return Some(Err(invalid(error)));
            }
        };
        let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
        rest = rest.get(length..).unwrap_or_default();
        let payload = message.payload();
        // Both begin with a code: 0, or a negative number of an error.
        let code = payload.first_chunk::<4>();
        let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
        let content = match message.message_type() {
            NLMSG_ERROR | NLMSG_DONE if code < 0 => Content::Failed(failure(code)),
            NLMSG_DONE => Content::Done,
            NLMSG_ERROR | NLMSG_NOOP | NLMSG_OVERRUN => Content::Nothing,
            _ => Content::Payload(payload),
        };
        Some(Ok(Message {
            sequence: message.sequence_number(),
            content,
        }))
    })
}

/// A message that is not what this version of the protocol has.
pub(super) fn invalid(error: DecodeError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}

fn failure(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Whether the kernel dropped messages because they were not read in time.
pub(super) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel builds it: length, type, flags, sequence number, port number, payload.
    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = 16 + payload.len() as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn told(datagram: &[u8]) -> Vec<String> {
        let told = messages(datagram).map(|message| match message {
            Ok(message) => match message.content {
                Content::Payload(payload) => format!("{} {payload:?}", message.sequence),
                Content::Done => format!("{} done", message.sequence),
                Content::Failed(error) => format!("{} {:?}", message.sequence, error.kind()),
                Content::Nothing => format!("{} nothing", message.sequence),
            },
            Err(error) => format!("{:?}", error.kind()),
        });
        told.collect()
    }

    #[test]
    fn a_datagram_has_several_messages() {
        let not_found = (-Errno::NOENT.raw_os_error()).to_ne_bytes();
        let datagram = [
            message(20, 7, &[1, 2, 3, 4, 5]),
            message(NLMSG_ERROR, 8, &not_found),
            message(NLMSG_ERROR, 9, &[0; 4]),
            message(NLMSG_NOOP, 0, &[]),
            message(NLMSG_DONE, 9, &[]),
            message(20, 10, &[]),
        ]
        .concat();
        let all = [
            "7 [1, 2, 3, 4, 5]",
            "8 NotFound",
            "9 nothing",
            "0 nothing",
            "9 done",
            "10 []",
        ];
        assert_eq!(told(&datagram), all);
    }

    #[test]
    fn a_datagram_that_is_cut_is_an_error() {
        let datagram = [message(20, 1, &[1; 8]), message(20, 2, &[2; 8])].concat();
        for length in 1..datagram.len() {
            let first = "1 [1, 1, 1, 1, 1, 1, 1, 1]";
            let expected = match length {
                ..24 => vec!["InvalidData"],
                24 => vec![first],
                25.. => vec![first, "InvalidData"],
            };
            assert_eq!(told(&datagram[..length]), expected, "{length}");
        }
        // Its length says that it is shorter than its header.
        let mut short = message(20, 1, &[]);
        short[..4].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(told(&short), ["InvalidData"]);
    }

    #[test]
    fn requests_are_sent_together() {
        struct Request(u8);
        impl NetlinkSerializable for Request {
            fn message_type(&self) -> u16 {
                20
            }
            fn buffer_len(&self) -> usize {
                3
            }
            fn serialize(&self, buffer: &mut [u8]) {
                buffer.fill(self.0);
            }
        }
        let mut bytes = Vec::new();
        push(&mut bytes, Request(1), 1, 5);
        push(&mut bytes, Request(2), 1, 6);
        assert_eq!(told(&bytes), ["5 [1, 1, 1]", "6 [2, 2, 2]"]);
    }
}
