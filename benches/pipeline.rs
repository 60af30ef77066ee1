//! Moves one raw file into an archive or out of one, through the real pipeline, for timing against `zstd` and `cp`:
//!
//!     pipeline backup DISK ARCHIVE none|zstd:N|gzip:N|lzo
//!     pipeline restore ARCHIVE DISK        (DISK `-`: only check)
//!
//! Prints what was moved and the peak memory. Without arguments (`cargo bench`, `cargo test --benches`) it does nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vzkeep::archive::{Compression, Source};
use vzkeep::host::{Cancel, Host};
use vzkeep::image::{Extent, ExtentKind, Image, ImageError, Target};
use vzkeep::storage::Draft;
use vzkeep::transfer::{Backup, BackupDisk, DEFAULT_MEMORY, Output, backup, restore};

struct Raw {
    file: File,
    size: u64,
}

impl Raw {
    fn failed(op: &'static str, offset: u64, len: u64, source: io::Error) -> ImageError {
        ImageError { image: "disk".into(), op, offset, len, source }
    }
}

impl Image for Raw {
    fn name(&self) -> &str {
        "disk"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        use nix::unistd::{Whence, lseek};
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let seek = |whence| lseek(&self.file, at.cast_signed(), whence);
            let data = seek(Whence::SeekData).map_or(range.end, i64::cast_unsigned).min(range.end);
            let (kind, end) = if data > at {
                (ExtentKind::Zero, data)
            } else {
                (ExtentKind::Data, seek(Whence::SeekHole).map_or(range.end, i64::cast_unsigned).min(range.end))
            };
            extents.push(Extent { offset: at, len: end - at, kind });
            at = end;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let len = buf.len() as u64;
        self.file.read_exact_at(buf, offset).map_err(|e| Self::failed("read", offset, len, e))
    }
}

impl Target for Raw {
    fn name(&self) -> &str {
        "disk"
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn starts_zeroed(&self) -> bool {
        true
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        let len = buf.len() as u64;
        self.file.write_all_at(buf, offset).map_err(|e| Self::failed("write", offset, len, e))?;
        // So that the flush at the end finds little to do; it reports what fails here.
        vzkeep::host::sys::start_write_back(&self.file, offset, len).ok();
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        Err(Self::failed("write zeroes", range.start, range.end - range.start, io::ErrorKind::Unsupported.into()))
    }

    fn flush(&self) -> Result<(), ImageError> {
        match std::env::var_os("NO_FLUSH") {
            Some(_) => Ok(()),
            None => self.file.sync_all().map_err(|e| Self::failed("flush", 0, self.size, e)),
        }
    }
}

fn compression(word: &str) -> Result<Compression, Box<dyn Error>> {
    let (name, threads) = word.split_once(':').unwrap_or((word, "1"));
    let threads = threads.parse()?;
    Ok(match name {
        "none" => Compression::None,
        "zstd" => Compression::Zstd { threads },
        "gzip" => Compression::Gzip { threads },
        "lzo" => Compression::Lzo,
        other => return Err(format!("compression '{other}' is none of none, zstd:N, gzip:N, lzo").into()),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench" && a != "--test").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (host, cancel, begin) = (Host::from_env(), Cancel::new(), Instant::now());
    match args[..] {
        ["backup", disk, archive, word] => {
            let file = File::open(disk)?;
            let size = file.metadata()?.len();
            let job = Backup {
                disks: vec![BackupDisk { name: "drive-scsi0".into(), image: Arc::new(Raw { file, size }) }],
                configs: vec![("qemu-server.conf".into(), b"memory: 128\n".to_vec())],
                compression: compression(word)?,
                uuid: *uuid::Uuid::new_v4().as_bytes(),
                ctime: 0,
                bwlimit: None,
                memory: DEFAULT_MEMORY,
                host,
            };
            if Path::new(archive).exists() {
                std::fs::remove_file(archive)?;
            }
            let mut draft = Draft::create(Path::new(archive))?;
            let summary = backup(&job, Output::Draft(&mut draft), &mut |_| {}, &cancel)?;
            let copied = begin.elapsed();
            draft.commit()?;
            println!("{summary:?} copied {copied:.2?} committed {:.2?}", begin.elapsed());
        }
        ["restore", archive, disk] => {
            let source = Source::open(&host, Path::new(archive), &cancel)?;
            let size = source.header().devices[0].size;
            let mut targets: BTreeMap<u8, Arc<dyn Target>> = BTreeMap::new();
            if disk != "-" {
                let file = File::create(disk)?;
                file.set_len(size)?;
                targets.insert(1, Arc::new(Raw { file, size }));
            }
            let summary = restore(source, &targets, None, &mut |_| {}, &cancel)?;
            println!("{summary} in {:.2?}", begin.elapsed());
        }
        _ => return Ok(()),
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}
