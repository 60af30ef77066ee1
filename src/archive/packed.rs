//! What an archive is compressed with: recognised by its first bytes, undone here or by the stock program.

use std::io::{self, BufReader, Read};

use super::frame::Container;
use super::input::{Decompressor, Packed};
use crate::host::{Cancel, Host};

/// Compressed bytes that are read at once.
const READ: usize = 1 << 20;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Plain,
    Zstd,
    Gzip,
    Lzop,
    Xz,
    Bzip2,
}

impl Method {
    /// By the first bytes; `None` when it is none of those that can be seen from them.
    pub(super) fn recognise(start: &[u8]) -> Option<Self> {
        match start {
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Lzop),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => Some(Self::Bzip2),
            _ => None,
        }
    }

    /// What may have an index.
    pub(crate) fn container(self) -> Option<Container> {
        match self {
            Self::Zstd => Some(Container::Zstd),
            Self::Gzip => Some(Container::Gzip),
            Self::Plain | Self::Lzop | Self::Xz | Self::Bzip2 => None,
        }
    }

    /// The data without the compression. `stop` is set when it is dropped while a child works.
    pub(crate) fn unpack(
        self,
        host: &Host,
        packed: Packed,
        cancel: &Cancel,
        stop: &Cancel,
    ) -> io::Result<Box<dyn Read + Send>> {
        let program = match self {
            Self::Lzop => "lzop",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Plain | Self::Zstd | Self::Gzip => {
                let input: Box<dyn Read + Send> = match packed {
                    Packed::File(file) => Box::new(file),
                    Packed::Stream(stream) => stream,
                };
                let input = BufReader::with_capacity(READ, input);
                return Ok(match self {
                    Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
                    Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
                    _ => Box::new(input),
                });
            }
        };
        Ok(Box::new(Decompressor::start(host, program, packed, cancel, stop)?))
    }
}
