//! Random access into files of lzop: their blocks are independent of each other, and their sizes stand in front.
//!
//! Decompressing is the stock program's work. In the pass it reads the file itself, while we go over the headers of the
//! blocks; later it is given a small file made of the original header, the blocks that are wanted and an end mark. The
//! format has no specification; what is here follows what `lzop -l -v` and `lzop -t` make of files.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::points::{Collector, Entry};
use super::{Decode, Packed, PackedReader, SeekError, Sink};
use crate::archive::input::{self, Decompressor};
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host};

const PROGRAM: &str = "lzop";
const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];
/// From this version on the header tells more.
const VERSION_WITH_LEVEL: u16 = 0x0940;
/// Flags of a header: checksums (Adler-32, CRC32) of a block's data and of its compressed form, and parts of the header.
const ADLER_DATA: u32 = 1;
const ADLER_PACKED: u32 = 2;
const EXTRA: u32 = 0x40;
const CRC_DATA: u32 = 0x100;
const CRC_PACKED: u32 = 0x200;
const FILTER: u32 = 0x800;
/// Bytes of data in the largest block the program makes or takes.
const MAX_BLOCK: u32 = 64 << 20;
/// Bytes of the longest header we pass on: its extra field has any length.
const MAX_HEADER: u64 = 1 << 20;
/// Bytes of data that are wanted of the program at once, at least.
const GROUP: usize = 4 << 20;
/// Bytes of headers that are read at once.
const READ: usize = 4 << 10;
/// How long the program may take for a group.
const PATIENCE: Duration = Duration::from_secs(120);

/// A block.
struct Block {
    packed: u64,
    /// Bytes in the file, its header included.
    len: u64,
    /// Bytes of data.
    raw: u32,
}

/// Goes over the headers of a file.
struct Blocks {
    input: PackedReader,
    /// Offset, length and flags of the header in force; none between two.
    header: Option<(u64, u64, u32)>,
}

impl Blocks {
    fn new(file: &Arc<dyn Packed>, read: usize) -> Self {
        Self { input: PackedReader::new(Arc::clone(file), read), header: None }
    }

    /// The next block; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<Block>, SeekError> {
        loop {
            let Some((_, _, flags)) = self.header else {
                if self.input.peek(1)?.is_empty() {
                    return Ok(None);
                }
                self.header = Some(self.read_header()?);
                continue;
            };
            let packed = self.input.offset();
            const WHAT: &str = "a block";
            let raw = u32::from_be_bytes(self.input.take::<4>(packed, WHAT)?);
            if raw == 0 {
                self.header = None;
                continue;
            }
            let len = u32::from_be_bytes(self.input.take::<4>(packed, WHAT)?);
            if raw > MAX_BLOCK || len > raw || len == 0 {
                let what = format!("a block of {len} bytes for {raw} bytes of data");
                return Err(SeekError::damaged(packed, what));
            }
            let mut sums = (flags & ADLER_DATA != 0) as u64 + (flags & CRC_DATA != 0) as u64;
            if len < raw {
                sums += (flags & ADLER_PACKED != 0) as u64 + (flags & CRC_PACKED != 0) as u64;
            }
            let rest = 4 * sums + u64::from(len);
            if rest > self.input.left()? {
                return Err(SeekError::cut(packed, WHAT));
            }
            self.input.skip(rest);
            return Ok(Some(Block { packed, len: 8 + rest, raw }));
        }
    }

    fn read_header(&mut self) -> Result<(u64, u64, u32), SeekError> {
        const WHAT: &str = "the header of an lzop file";
        let start = self.input.offset();
        if self.input.take::<9>(start, WHAT)? != MAGIC {
            return Err(SeekError::damaged(start, "no lzop file begins here".into()));
        }
        let version = u16::from_be_bytes(self.input.take::<2>(start, WHAT)?);
        self.input.take::<2>(start, WHAT)?;
        // The version that is needed, the method and, since then, the level.
        if version >= VERSION_WITH_LEVEL {
            self.input.take::<4>(start, WHAT)?;
        } else {
            self.input.take::<1>(start, WHAT)?;
        }
        let flags = u32::from_be_bytes(self.input.take::<4>(start, WHAT)?);
        if flags & FILTER != 0 {
            self.input.take::<4>(start, WHAT)?;
        }
        // Mode and time, of which newer versions have more.
        self.input.take::<8>(start, WHAT)?;
        if version >= VERSION_WITH_LEVEL {
            self.input.take::<4>(start, WHAT)?;
        }
        let [name] = self.input.take::<1>(start, WHAT)?;
        self.input.skip(u64::from(name));
        // The checksum of the header.
        self.input.take::<4>(start, WHAT)?;
        if flags & EXTRA != 0 {
            let extra = u32::from_be_bytes(self.input.take::<4>(start, WHAT)?);
            self.input.skip(u64::from(extra) + 4);
        }
        let len = self.input.offset() - start;
        if len > MAX_HEADER {
            return Err(SeekError::damaged(start, "the header of an lzop file has no end".into()));
        }
        Ok((start, len, flags))
    }
}

/// Passes all data of `file` to `sink` and collects access points.
pub(super) fn scan(
    host: &Host,
    file: &Arc<dyn Packed>,
    collector: &mut Collector,
    sink: Sink<'_>,
    cancel: &Cancel,
) -> Result<(), SeekError> {
    let none = || Err(std::io::Error::other("lzop needs a file"));
    let input = file.file().unwrap_or_else(none).map_err(SeekError::Program)?;
    let stop = Cancel::new();
    let mut output =
        Decompressor::start(host, PROGRAM, input::Packed::File(input), cancel, &stop).map_err(SeekError::Program)?;
    let mut blocks = Some(Blocks::new(file, READ));
    // Where the last block that was found begins in the file, and ends in the data.
    let (mut packed, mut end) = (0, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = match output.read(&mut buffer) {
            Ok(got) => got,
            Err(_) if cancel.is_set() => return Err(SeekError::Cancelled),
            Err(e) => return Err(SeekError::damaged(packed, e.to_string())),
        };
        let data = &buffer[..got];
        collector.feed(data)?;
        sink(data).map_err(SeekError::Sink)?;
        while let Some(walk) = &mut blocks
            && (got == 0 || end <= collector.raw())
        {
            match walk.next() {
                Ok(Some(block)) => {
                    packed = block.packed;
                    collector.lzop(packed, end, walk.header.map_or(0, |(header, ..)| header));
                    end += u64::from(block.raw);
                }
                Ok(None) => break,
                // The program decides what is wrong; without blocks there are only no more access points.
                Err(_) => blocks = None,
            }
        }
        if got == 0 {
            if end != collector.raw() {
                collector.note(format!(
                    "the blocks of the lzop file are not understood from byte {packed} on, which makes reading slow"
                ));
            }
            return Ok(());
        }
    }
}

/// Decompresses from an access point on, to the end of the file.
pub(super) struct Decoder {
    host: Host,
    file: Arc<dyn Packed>,
    blocks: Blocks,
    cancel: Cancel,
    data: Vec<u8>,
    given: usize,
}

impl Decoder {
    pub(super) fn open(
        host: &Host,
        file: &Arc<dyn Packed>,
        packed: u64,
        entry: &Entry,
        cancel: &Cancel,
    ) -> Result<Self, SeekError> {
        let mut blocks = Blocks::new(file, READ);
        if let Entry::Lzop { header } = entry {
            blocks.input.skip(*header);
            blocks.header = Some(blocks.read_header()?);
            blocks.input = PackedReader::new(Arc::clone(file), READ);
        }
        blocks.input.skip(packed);
        let (host, file, cancel) = (host.clone(), Arc::clone(file), cancel.clone());
        Ok(Self { host, file, blocks, cancel, data: Vec::new(), given: 0 })
    }

    /// Decompresses the next blocks; no data when there are none.
    fn fill(&mut self) -> Result<(), SeekError> {
        (self.given, self.data) = (0, Vec::new());
        let Some(first) = self.blocks.next()? else { return Ok(()) };
        let Some((header, header_len, _)) = self.blocks.header else { return Ok(()) };
        let (start, mut end, mut raw) = (first.packed, first.packed + first.len, first.raw as usize);
        while raw < GROUP {
            let at = self.blocks.input.offset();
            let next = match self.blocks.next() {
                Ok(None) => break,
                Ok(Some(block)) if block.packed == at => {
                    end += block.len;
                    raw += block.raw as usize;
                    continue;
                }
                // Behind an end mark begins another header: the next group's.
                Ok(Some(block)) => block.packed,
                // What is in front of the damage is good; who wants more finds it again.
                Err(_) => at,
            };
            self.blocks.input = PackedReader::new(Arc::clone(&self.file), READ);
            self.blocks.input.skip(next);
            break;
        }
        let mut small = self.bytes(header, header_len)?;
        small.append(&mut self.bytes(start, end - start)?);
        small.extend_from_slice(&[0; 4]);
        let mut command = self.host.command(PROGRAM);
        command.args(["-d", "-c"]);
        let ended = child::run(&mut command, Some(small), PATIENCE, &self.cancel).map_err(SeekError::Program)?;
        match ended {
            Ended::Exited(output) if output.status.success() && output.stdout.len() == raw => {
                self.data = output.stdout;
                Ok(())
            }
            Ended::Exited(output) => {
                Err(SeekError::damaged(start, format!("{PROGRAM} failed: {}", output.complaint().replace('\n', "; "))))
            }
            Ended::Late(limit) => {
                let what = format!("{PROGRAM} did not end within {} s", limit.as_secs());
                Err(SeekError::Program(std::io::Error::new(std::io::ErrorKind::TimedOut, what)))
            }
            Ended::Cancelled => Err(SeekError::Cancelled),
        }
    }

    fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>, SeekError> {
        let mut bytes = vec![0; len as usize];
        let mut got = 0;
        while got < bytes.len() {
            let at = offset + got as u64;
            match self.file.read_some(&mut bytes[got..], at) {
                Ok(0) => return Err(SeekError::cut(offset, "a block")),
                Ok(count) => got += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(SeekError::Read { offset: at, source }),
            }
        }
        Ok(bytes)
    }
}

impl Decode for Decoder {
    fn decode(&mut self, out: &mut [u8]) -> Result<usize, SeekError> {
        if self.given == self.data.len() {
            self.fill()?;
        }
        let rest = &self.data[self.given..];
        let got = rest.len().min(out.len());
        out[..got].copy_from_slice(&rest[..got]);
        self.given += got;
        Ok(got)
    }

    fn weight(&self) -> u64 {
        2 * self.data.len().max(GROUP) as u64
    }
}
