//! The members of an archive on their way to tar: vetted by [`unpack_tar`], and those headers kept that are needed once more.

use std::io::{self, Write};
use std::process::ChildStdin;

use super::tree::{FeedError, Members};
use crate::archive::tar::{BLOCK, Kind, Rules, TarSource, Vetting, Walker, normal};
use crate::host::Cancel;
use crate::transfer::{Output, TransferError, unpack_tar, widen_pipe};

/// The members of an open archive.
pub struct TarMembers {
    /// The archive.
    pub source: TarSource,
    /// Bytes of tar data a second.
    pub limit: Option<u64>,
    /// Whether device nodes are let through.
    pub devices: bool,
}

impl Members for TarMembers {
    fn feed(self: Box<Self>, tar: ChildStdin, wanted: &[String], cancel: &Cancel) -> Result<Vec<u8>, FeedError> {
        widen_pipe(&tar);
        let mut collector = Collector::new(tar, wanted);
        let mut vetting = Vetting::new(Rules { devices: self.devices });
        let output = Output::Writer(Box::new(&mut collector), "tar".into());
        unpack_tar(self.source, output, &mut vetting, self.limit, &mut |_| {}, cancel).map_err(|e| match e {
            TransferError::Write { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => FeedError::Deaf,
            other => FeedError::Archive(other.to_string()),
        })?;
        Ok(collector.collected())
    }
}

/// Hands everything on, and keeps the headers of some directories.
struct Collector<'a> {
    to: ChildStdin,
    wanted: &'a [String],
    walker: Walker,
    /// Of the member that is next.
    headers: Vec<u8>,
    /// Bytes of data of the last member that are still to come.
    data: u64,
    kept: Vec<u8>,
}

impl<'a> Collector<'a> {
    fn new(to: ChildStdin, wanted: &'a [String]) -> Self {
        Self { to, wanted, walker: Walker::new(), headers: Vec::new(), data: 0, kept: Vec::new() }
    }

    /// Looks at bytes that have been vetted.
    fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.walker.ended() {
            let part = if self.data > 0 {
                let count = usize::try_from(self.data).unwrap_or(usize::MAX).min(bytes.len());
                // Not passed over: it may begin with the map of a sparse file, which the walker reads.
                self.walker.feed(&bytes[..count], &mut |_| Ok(())).map_err(io::Error::other)?;
                self.data -= count as u64;
                count
            } else {
                // Not beyond a block: the headers of a member end with one.
                let filled = usize::try_from(self.walker.offset() % BLOCK as u64).unwrap_or_default();
                let count = (BLOCK - filled).min(bytes.len());
                self.headers.extend_from_slice(&bytes[..count]);
                let mut found = None;
                self.walker
                    .feed(&bytes[..count], &mut |member| {
                        found = Some(member);
                        Ok(())
                    })
                    .map_err(io::Error::other)?;
                if let Some(member) = found {
                    let is = |wanted: &String| normal(wanted.as_bytes()) == normal(&member.path);
                    if member.kind == Kind::Directory && member.stored == 0 && self.wanted.iter().any(is) {
                        self.kept.append(&mut self.headers);
                    }
                    self.headers.clear();
                    self.data = member.stored.next_multiple_of(BLOCK as u64);
                }
                count
            };
            bytes = &bytes[part..];
        }
        Ok(())
    }

    /// The headers that were kept, as an archive; empty if there are none.
    fn collected(mut self) -> Vec<u8> {
        if !self.kept.is_empty() {
            self.kept.resize(self.kept.len() + 2 * BLOCK, 0);
        }
        self.kept
    }
}

impl Write for Collector<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.look(&bytes[..count])?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
