//! A request as it comes off the stream, and whether it may be carried out.

use std::io::{BufRead, ErrorKind};
use std::ops::Range;
use std::time::Duration;

use super::Ended;
use super::error::Fault;
use super::export::Export;
use super::handshake::Session;
use crate::nbd::vocabulary::*;
use crate::nbd::wire::{Command, DONT_FRAGMENT, REQUEST_LEN};

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub flags: u16,
    /// The number of the command, known or not.
    pub code: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Request {
    /// Waits for the next request as long as it takes, but for half of one only as long as the stream is patient. `None`:
    /// the client is gone.
    pub fn read(input: &mut impl BufRead, patience: Duration) -> Result<Option<Self>, Ended> {
        loop {
            match input.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(_) => break,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(e) => return Err(Ended::from_io(e, patience)),
            }
        }
        let mut bytes = [0; REQUEST_LEN];
        input.read_exact(&mut bytes).map_err(|e| Ended::from_io(e, patience))?;
        let number = |range: Range<usize>| bytes[range].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        if number(0..4) != u64::from(REQUEST_MAGIC) {
            return Err(Ended::Protocol(format!("{:#010x} is not the start of a request", number(0..4))));
        }
        let request = Self {
            flags: number(4..6) as u16,
            code: number(6..8) as u16,
            cookie: number(8..16),
            offset: number(16..24),
            len: number(24..28) as u32,
        };
        if request.payload() > DEFAULT_MAX_BLOCK {
            // Its payload would have to be swallowed to stay in step; nobody sends that by mistake.
            return Err(Ended::Protocol(format!("a write of {} bytes, {DEFAULT_MAX_BLOCK} are allowed", request.len)));
        }
        Ok(Some(request))
    }

    /// The command, if there is one of this number.
    pub fn command(&self) -> Option<Command> {
        Command::from_code(self.code)
    }

    /// How many bytes follow the header.
    pub fn payload(&self) -> u32 {
        if self.command() == Some(Command::Write) { self.len } else { 0 }
    }

    /// Whether `flag` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The bytes concerned; only after [`Self::check`].
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.len))
    }

    /// The command, if this request may be carried out.
    pub fn check(&self, export: &Export, session: &Session) -> Result<Command, Fault> {
        let refused = |errno, message: String| Err(Fault::refused(errno, message));
        let Some(command) = self.command() else {
            return refused(EINVAL, format!("command {} is not known", self.code));
        };
        let writes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if writes && export.disk.is_none() {
            return refused(EPERM, format!("{} can only be read", export.name));
        }
        let allowed = FLAG_FUA
            | match command {
                Command::Read if session.structured => DONT_FRAGMENT,
                Command::WriteZeroes => FLAG_NO_HOLE,
                Command::BlockStatus => FLAG_REQ_ONE,
                _ => 0,
            };
        if self.flags & !allowed != 0 {
            let what = format!("flags {:#x} of a {} are not known", self.flags & !allowed, command.name());
            return refused(EINVAL, what);
        }
        if matches!(command, Command::Flush | Command::Disconnect) {
            return Ok(command);
        }
        let size = export.image.size();
        if self.offset.checked_add(u64::from(self.len)).is_none_or(|end| end > size) {
            let errno = if matches!(command, Command::Write | Command::WriteZeroes) { ENOSPC } else { EINVAL };
            let Self { offset, len, .. } = self;
            return refused(errno, format!("{len} bytes at offset {offset} are outside the disk of {size} bytes"));
        }
        match command {
            Command::Read if self.len > DEFAULT_MAX_BLOCK => {
                refused(EINVAL, format!("a read of {} bytes, {DEFAULT_MAX_BLOCK} are allowed", self.len))
            }
            Command::BlockStatus if !session.status => refused(EINVAL, "no meta context was agreed on".into()),
            Command::BlockStatus if self.len == 0 => refused(EINVAL, "block status of 0 bytes".into()),
            _ => Ok(command),
        }
    }
}
