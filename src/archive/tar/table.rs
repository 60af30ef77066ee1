//! The table of an archive's members: what each directory holds and where it lies, sorted, so that listing one directory or
//! finding one file reads a few blocks of it. It lies between the frames and their index, in parts stock programs skip.
//!
//! Entries are sorted by directory, then by name, with what they share with the one before left out, in blocks that are
//! compressed one by one; a root block knows the first key of each. Every block has a checksum, and a reader checks what
//! an entry says against the archive. While an archive is written, sorted runs are kept compressed, about 10 MiB for a
//! million files; beyond a limit the table is left out, which is said.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;

use super::{Kind, Member, normal};
use crate::archive::frame::{Container, wrap};

/// Bytes of entries in a block, about.
const BLOCK: usize = 128 << 10;
/// Bytes of a block that are read at most: one entry may be long.
const MOST: usize = 4 << 20;
/// Bytes of a first key that the root has: enough for finding its block.
pub(super) const ROOT_KEY: usize = 256;
/// Bytes of the longest key.
const LONGEST_KEY: usize = 64 << 10;
/// Bytes of entries that are sorted at once.
const RUN: usize = 8 << 20;
/// Bytes all runs may have.
const MOST_RUNS: usize = 64 << 20;
const MAGIC: &[u8; 8] = b"vzkeepTM";
const VERSION: u8 = 1;
const LEVEL: i32 = 3;

/// What the table says of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// The directory, NUL, the name: normal, so that all entries of a directory stand together.
    pub(super) key: Vec<u8>,
    /// Where its first header starts in the tar data.
    pub(super) offset: u64,
    /// Bytes of the file.
    pub(super) size: u64,
    /// What it is.
    pub(super) kind: u8,
}

/// The key of a normal name.
pub(super) fn key(name: &[u8]) -> Vec<u8> {
    let (directory, name) = match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash], &name[slash + 1..]),
        None => (&[][..], name),
    };
    [directory, b"\0", name].concat()
}

/// The normal name that a key is of.
pub(super) fn name(key: &[u8]) -> Vec<u8> {
    match key.iter().position(|byte| *byte == 0) {
        Some(0) => key[1..].to_vec(),
        Some(at) => [&key[..at], b"/", &key[at + 1..]].concat(),
        None => key.to_vec(),
    }
}

/// What the entries of a directory begin with.
pub(super) fn prefix(directory: &[u8]) -> Vec<u8> {
    [directory, b"\0"].concat()
}

/// The sign of a kind in the table, and in a list of files.
pub(crate) fn sign(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'-',
        Kind::HardLink => b'h',
        Kind::Symlink => b'l',
        Kind::Character => b'c',
        Kind::BlockDevice => b'b',
        Kind::Directory => b'd',
        Kind::Fifo => b'p',
        Kind::Label => b'V',
        Kind::Other(_) => b'?',
    }
}

/// Collects the table while an archive is written.
#[derive(Default)]
pub struct TableBuilder {
    pending: Vec<Entry>,
    pending_bytes: usize,
    runs: Vec<Vec<Vec<u8>>>,
    run_bytes: usize,
    members: u64,
    /// Why there will be no table.
    failed: Option<String>,
}

impl TableBuilder {
    /// Without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes the next member.
    pub fn push(&mut self, member: &Member) {
        let key = key(&normal(&member.path));
        if key.len() > LONGEST_KEY {
            self.fail("a name is too long for one");
        }
        if self.failed.is_some() {
            return;
        }
        self.members += 1;
        self.pending_bytes += key.len() + size_of::<Entry>();
        self.pending.push(Entry { key, offset: member.offset, size: member.size, kind: sign(member.kind) });
        if self.pending_bytes > RUN {
            self.end_run();
        }
    }

    /// Sorts what is left: work that [`TableBuilder::finish`] need not do any more.
    pub fn close(&mut self) {
        self.end_run();
    }

    fn end_run(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.pending.sort_unstable();
        let (mut blocks, mut writer) = (Vec::new(), BlockWriter::default());
        for entry in std::mem::take(&mut self.pending) {
            writer.push(&entry);
            if writer.is_full() {
                blocks.push(std::mem::take(&mut writer).bytes);
            }
        }
        blocks.push(writer.bytes);
        self.pending_bytes = 0;
        let compressed: io::Result<Vec<_>> = blocks.iter().map(|block| zstd::bulk::compress(block, LEVEL)).collect();
        match compressed {
            Ok(run) => {
                self.run_bytes += run.iter().map(Vec::len).sum::<usize>();
                self.runs.push(run);
            }
            Err(e) => self.fail(&e.to_string()),
        }
        if self.run_bytes > MOST_RUNS {
            self.fail(&format!("{} are too many for one", self.members));
        }
    }

    fn fail(&mut self, why: &str) {
        self.failed = Some(format!("the archive gets no table of its members: {why}"));
        self.runs.clear();
        self.pending.clear();
    }

    /// The parts to append to the archive, one by one.
    ///
    /// # Errors
    /// With the reason when there is no table, which a log should have.
    pub fn finish(mut self, container: Container) -> Result<impl Iterator<Item = io::Result<Vec<u8>>>, String> {
        self.end_run();
        match self.failed {
            Some(note) => Err(note),
            None => Ok(Parts::new(container, self.runs, self.members)),
        }
    }
}

/// One run while runs are merged.
struct Run {
    blocks: std::vec::IntoIter<Vec<u8>>,
    entries: std::vec::IntoIter<Entry>,
}

impl Run {
    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            let Some(block) = self.blocks.next() else { return Ok(None) };
            let block = zstd::bulk::decompress(&block, MOST)?;
            let entries = entries(&block).ok_or_else(|| io::Error::other("a run of the table cannot be read"))?;
            self.entries = entries.into_iter();
        }
    }
}

/// Merges the runs into blocks.
struct Parts {
    container: Container,
    runs: Vec<Run>,
    heads: BinaryHeap<Reverse<(Entry, usize)>>,
    started: bool,
    first_keys: Vec<Vec<u8>>,
    members: u64,
    done: bool,
}

impl Parts {
    fn new(container: Container, runs: Vec<Vec<Vec<u8>>>, members: u64) -> Self {
        let run = |blocks: Vec<Vec<u8>>| Run { blocks: blocks.into_iter(), entries: Vec::new().into_iter() };
        let runs = runs.into_iter().map(run).collect();
        let (heads, first_keys) = (BinaryHeap::new(), Vec::new());
        Self { container, runs, heads, started: false, first_keys, members, done: false }
    }

    fn refill(&mut self, run: usize) -> io::Result<()> {
        if let Some(entry) = self.runs[run].next()? {
            self.heads.push(Reverse((entry, run)));
        }
        Ok(())
    }

    fn part(&mut self) -> io::Result<Vec<u8>> {
        if !self.started {
            self.started = true;
            (0..self.runs.len()).try_for_each(|run| self.refill(run))?;
        }
        let mut writer = BlockWriter::default();
        while !writer.is_full() {
            let Some(Reverse((entry, run))) = self.heads.pop() else { break };
            if writer.bytes.is_empty() {
                self.first_keys.push(entry.key[..entry.key.len().min(ROOT_KEY)].to_vec());
            }
            writer.push(&entry);
            self.refill(run)?;
        }
        if !writer.bytes.is_empty() {
            return sealed(self.container, b'B', &writer.bytes);
        }
        self.done = true;
        let mut root = Vec::new();
        put(&mut root, self.members);
        put(&mut root, self.first_keys.len() as u64);
        for key in &self.first_keys {
            put(&mut root, key.len() as u64);
            root.extend_from_slice(key);
        }
        sealed(self.container, b'R', &root)
    }
}

impl Iterator for Parts {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.done).then(|| {
            let part = self.part();
            self.done |= part.is_err();
            part
        })
    }
}

/// Writes entries, each with what it does not share with the one before.
#[derive(Default)]
struct BlockWriter {
    bytes: Vec<u8>,
    key: Vec<u8>,
    offset: u64,
    /// Bytes of all keys, what they share included.
    keys: usize,
}

impl BlockWriter {
    fn is_full(&self) -> bool {
        self.bytes.len() >= BLOCK || self.keys >= MOST
    }

    fn push(&mut self, entry: &Entry) {
        let shared = self.key.iter().zip(&entry.key).take_while(|(a, b)| a == b).count();
        put(&mut self.bytes, shared as u64);
        put(&mut self.bytes, (entry.key.len() - shared) as u64);
        self.bytes.extend_from_slice(&entry.key[shared..]);
        self.bytes.push(entry.kind);
        put(&mut self.bytes, entry.size);
        let step = entry.offset.wrapping_sub(self.offset).cast_signed();
        put(&mut self.bytes, (step << 1 ^ step >> 63).cast_unsigned());
        self.key.clone_from(&entry.key);
        self.keys += entry.key.len();
        self.offset = entry.offset;
    }
}

/// The entries of a block; `None` when it is damaged.
pub(super) fn entries(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    let mut total = 0;
    while !bytes.is_empty() {
        let shared = usize::try_from(get(&mut bytes)?).ok()?;
        let own = usize::try_from(get(&mut bytes)?).ok()?;
        let before = found.last().map_or(&[][..], |entry| &entry.key);
        let (own, rest) = bytes.split_at_checked(own)?;
        let key = [before.get(..shared)?, own].concat();
        // Few bytes can say that many keys are long.
        total += key.len();
        if key.len() > LONGEST_KEY || total > MOST + LONGEST_KEY {
            return None;
        }
        let (kind, rest) = rest.split_first()?;
        bytes = rest;
        let size = get(&mut bytes)?;
        let step = get(&mut bytes)?;
        let step = (step >> 1) ^ (step & 1).wrapping_neg();
        let offset = found.last().map_or(0, |entry| entry.offset).wrapping_add(step);
        found.push(Entry { key, offset, size, kind: *kind });
    }
    Some(found)
}

/// The root: the number of members and the first key of every block.
pub(super) struct Root {
    pub(super) members: u64,
    pub(super) first_keys: Vec<Vec<u8>>,
}

/// `None` when it is damaged.
pub(super) fn root(mut bytes: &[u8]) -> Option<Root> {
    let members = get(&mut bytes)?;
    let blocks = get(&mut bytes)?;
    let mut first_keys = Vec::new();
    for _ in 0..blocks {
        let len = usize::try_from(get(&mut bytes)?).ok()?;
        let (key, rest) = bytes.split_at_checked(len)?;
        first_keys.push(key.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(Root { members, first_keys })
}

fn sealed(container: Container, kind: u8, raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut payload = MAGIC.to_vec();
    payload.extend_from_slice(&[VERSION, kind]);
    payload.extend_from_slice(&crc32fast::hash(raw).to_le_bytes());
    payload.extend_from_slice(&zstd::bulk::compress(raw, LEVEL)?);
    Ok(wrap(container, &payload))
}

/// What a part holds; `None` when it is damaged or of another kind.
pub(super) fn unsealed(kind: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let rest = payload.strip_prefix(MAGIC)?.strip_prefix(&[VERSION, kind])?;
    let (sum, packed) = rest.split_first_chunk()?;
    let size = usize::try_from(zstd::zstd_safe::get_frame_content_size(packed).ok()??).ok()?;
    let raw = zstd::bulk::decompress(packed, Some(size).filter(|size| *size <= MOST)?).ok()?;
    (crc32fast::hash(&raw) == u32::from_le_bytes(*sum)).then_some(raw)
}

/// Seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}
