//! Compressing and decompressing single frames. One packer per thread: the contexts are reused, nothing is allocated
//! per frame.

use std::io;

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use super::Container;

/// Levels of the programs vzdump calls: `zstd` and `pigz` without an option.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: i32 = 6;
/// Bytes of a block in a zstd frame. Below 128 KiB, zstd 1.5.7 does not look for better borders of blocks, as the versions
/// before did not: that takes 3 % of the time for programs and documents, 15 % where random data and text alternate, and makes
/// archives 0.8 % smaller.
const ZSTD_BLOCK: u32 = 64 << 10;

/// Compresses frames.
pub struct Packer(Pack);

enum Pack {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(Box<Compressor>),
}

impl Packer {
    /// A context for frames of `container`.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(container: Container) -> io::Result<Self> {
        Ok(Self(match container {
            Container::Zstd => {
                let mut context = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                context.set_parameter(CParameter::ChecksumFlag(true))?;
                context.set_parameter(CParameter::ContentSizeFlag(true))?;
                context.set_parameter(CParameter::MaxBlockSize(ZSTD_BLOCK))?;
                Pack::Zstd(context)
            }
            Container::Gzip => {
                let level = CompressionLvl::new(GZIP_LEVEL).map_err(|e| io::Error::other(format!("{e:?}")))?;
                Pack::Gzip(Box::new(Compressor::new(level)))
            }
        }))
    }

    /// Compresses `raw` into one frame, which replaces what `out` held.
    ///
    /// # Errors
    /// When the library refuses; there is always room enough.
    pub fn pack(&mut self, raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.0 {
            Pack::Zstd(context) => {
                out.clear();
                out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
                context.compress_to_buffer(raw, out)?;
            }
            Pack::Gzip(context) => {
                out.resize(context.gzip_compress_bound(raw.len()), 0);
                let len = context.gzip_compress(raw, out).map_err(|e| io::Error::other(e.to_string()))?;
                out.truncate(len);
            }
        }
        Ok(())
    }
}

/// Decompresses frames.
pub struct Unpacker(Unpack);

enum Unpack {
    Zstd(zstd::bulk::Decompressor<'static>),
    Gzip(Box<Decompressor>),
}

impl Unpacker {
    /// A context for frames of `container`.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(container: Container) -> io::Result<Self> {
        Ok(Self(match container {
            Container::Zstd => Unpack::Zstd(zstd::bulk::Decompressor::new()?),
            Container::Gzip => Unpack::Gzip(Box::new(Decompressor::new())),
        }))
    }

    /// Decompresses `packed`, which has to give exactly `len` bytes, into `out`.
    ///
    /// # Errors
    /// When `packed` is damaged or gives more or fewer bytes.
    pub fn unpack(&mut self, packed: &[u8], len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        match &mut self.0 {
            Unpack::Zstd(context) => {
                out.clear();
                out.reserve_exact(len);
                context.decompress_to_buffer(packed, out)?;
            }
            Unpack::Gzip(context) => {
                out.resize(len, 0);
                let got = context.gzip_decompress(packed, out).map_err(|e| damaged(format!("gzip: {e}")))?;
                out.truncate(got);
            }
        }
        if out.len() != len {
            return Err(damaged(format!("the frame holds {} bytes, its index says {len}", out.len())));
        }
        Ok(())
    }
}
