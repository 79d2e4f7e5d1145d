//! Messages from and to the kernel (`man 7 netlink`).

use std::fmt::Debug;
use std::io::{self, ErrorKind};

use netlink_packet_core::{
    NLM_F_MULTIPART, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::Socket;
use rustix::io::Errno;

/// Of one read; the kernel sends a dump in messages of at most 32 KiB.
pub(super) const READ_BYTES: usize = 64 << 10;
/// A message begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// Sends one request.
pub(super) fn send<M: NetlinkSerializable + Debug>(
    socket: &Socket,
    request: M,
    flags: u16,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Reads once, and calls `each` with the messages. Returns whether more of a dump follows.
pub(super) fn read<M: NetlinkDeserializable + Debug>(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(M),
) -> io::Result<bool> {
    buffer.clear();
    socket.recv(buffer, 0)?;
    let mut rest = &buffer[..];
    let mut is_multipart = false;
    while !rest.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(rest)
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
        is_multipart = message.header.flags & NLM_F_MULTIPART != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(message) => each(message),
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(-done.code));
            }
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
        rest = rest.get(length.max(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(is_multipart)
}

/// Whether the kernel dropped messages because they were not read in time.
pub(super) fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}
