//! `vma extract`: into a new directory, or to where the caller says over a fifo.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::map::{self, Mapping, Place};
use super::read::{STATE, content};
use super::words::Words;
use super::{Failure, Tools, fatal};
use crate::archive::PolledRead;
use crate::archive::vma::{Device, Header};
use crate::cli::say;
use crate::host::files::{reason, rename_new, sync_directory};
use crate::image::{RawTarget, Target, detect_format, open_target};
use crate::transfer::{Throttle, Throttled};

/// How much larger than its disk a target may be: storages round up.
const ROUNDED: u64 = 4 << 20;

pub(super) fn extract(tools: &Tools, words: &Words) -> Result<(), Failure> {
    let [filename, dirname] = words.rest.as_slice() else { return Err(Failure::Usage) };
    let source = tools.open(filename)?;
    let header = source.header().clone();
    let dir = tools.path(dirname);
    fs::DirBuilder::new()
        .mode(0o777)
        .create(&dir)
        .map_err(|e| fatal(format!("unable to create target directory {dirname} - {}", reason(&e))))?;
    for (name, data) in &header.configs {
        let written = File::create_new(dir.join(name)).and_then(|mut file| {
            file.write_all(data)?;
            file.sync_all()
        });
        written.map_err(|e| fatal(format!("unable to write file: '{dirname}/{name}': {}", reason(&e))))?;
    }
    let map = words.last('r').map(|fifo| ask(tools, &header, fifo)).transpose()?;
    let wanted: Option<Vec<&str>> = words.last('d').map(|list| list.split(',').collect());
    let mut job = Extraction { tools, dirname, dir, throttles: BTreeMap::new(), files: Vec::new() };
    let mut targets: BTreeMap<u8, Arc<dyn Target>> = BTreeMap::new();
    for device in &header.devices {
        let target = if device.name == STATE {
            Some(job.state(device)?)
        } else if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&device.name.as_str())) {
            None
        } else if let Some(map) = &map {
            match map.get(&device.name) {
                None => return Err(fatal(format!("no device name mapping for {}", device.name))),
                Some(Mapping::Skip) => None,
                Some(Mapping::To(place)) => Some(job.place(device, place)?),
            }
        } else {
            Some(job.file(device)?)
        };
        targets.extend(target.map(|target| (device.id, target)));
    }
    let restored = tools.restore(source, &targets, words.has('v'));
    drop(targets);
    restored.map_err(|e| fatal(format!("restore failed - {e}")))?;
    job.name_files()
}

/// Says what is in the archive and reads where it shall go.
fn ask(tools: &Tools, header: &Header, fifo: &str) -> Result<BTreeMap<String, Mapping>, Failure> {
    say(&content(header));
    // Opened for reading without a writer, and then waited for, so that the wait ends with a signal.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(tools.path(fifo));
    let file = file.map_err(|e| fatal(format!("unable to open fifo {fifo} - {}", reason(&e))))?;
    map::read(&mut BufReader::new(PolledRead::new(file, vec![tools.cancel.clone()]))).map_err(fatal)
}

/// Opens the targets and knows what has to be renamed, or removed if it fails.
struct Extraction<'a> {
    tools: &'a Tools,
    dirname: &'a str,
    dir: PathBuf,
    /// By name of the group.
    throttles: BTreeMap<String, Arc<Throttle>>,
    /// Files under their temporary and their final names.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Extraction<'_> {
    /// A new file below a temporary name.
    fn file(&mut self, device: &Device) -> Result<Arc<dyn Target>, Failure> {
        let name = format!("tmp-disk-{}.raw", device.name);
        let shown = format!("{}/{name}", self.dirname);
        say(&format!("DEVINFO {shown} {}\n", device.size));
        let path = self.dir.join(name);
        let made = create(&path, device.size).map_err(|e| fatal(format!("can't create file {shown}: {}", reason(&e))));
        made?;
        self.files.push((path.clone(), self.dir.join(format!("disk-{}.raw", device.name))));
        open_raw(&path, &device.name)
    }

    /// The state of a running machine; below a temporary name like the disks.
    fn state(&mut self, device: &Device) -> Result<Arc<dyn Target>, Failure> {
        let path = self.dir.join("tmp-vmstate.bin");
        create(&path, device.size).map_err(|e| {
            fatal(format!("create vmstate file '{}/vmstate.bin' failed - {}", self.dirname, reason(&e)))
        })?;
        self.files.push((path.clone(), self.dir.join("vmstate.bin")));
        open_raw(&path, &device.name)
    }

    /// What is there already.
    fn place(&mut self, device: &Device, place: &Place) -> Result<Arc<dyn Target>, Failure> {
        let cannot = |why: String| fatal(format!("can't open file {} - {why}", place.path));
        let host = &self.tools.host;
        let path = self.tools.path(&place.path);
        let format = match &place.format {
            Some(format) => format.clone(),
            None if place.path.ends_with(".raw") || place.path.starts_with("/dev/") => "raw".to_owned(),
            None => detect_format(host, &path).map_err(cannot)?,
        };
        let target = open_target(host, &path, &format, &device.name, !place.write_zeroes);
        let target = target.map_err(|e| cannot(e.to_string()))?;
        let (size, wanted) = (target.size(), device.size);
        if size < wanted || size - wanted > ROUNDED {
            return Err(fatal(format!(
                "vma_reader_register_bs for stream {} failed - unexpected size {size} != {wanted}",
                device.name
            )));
        }
        if place.bps == 0 {
            return Ok(target);
        }
        let group = place.group.clone().unwrap_or_else(|| place.path.clone());
        let throttle = self.throttles.entry(group).or_insert_with(|| Arc::new(Throttle::new(place.bps)));
        Ok(Arc::new(Throttled::new(target, Arc::clone(throttle), self.tools.cancel.clone())))
    }

    /// All are complete: gives them their names.
    fn name_files(mut self) -> Result<(), Failure> {
        while let Some((from, to)) = self.files.first() {
            rename_new(from, to)
                .map_err(|e| fatal(format!("rename {} to {} failed - {}", from.display(), to.display(), reason(&e))))?;
            self.files.remove(0);
        }
        // The names in the directory, and its own.
        sync_directory(&self.dir).map_err(|e| fatal(format!("sync of {} failed - {}", self.dirname, reason(&e))))
    }
}

impl Drop for Extraction<'_> {
    fn drop(&mut self) {
        for (temporary, _) in &self.files {
            // The directory is the caller's now; what stays in it bears a name that says what it is.
            fs::remove_file(temporary).unwrap_or_default();
        }
    }
}

fn create(path: &Path, size: u64) -> std::io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?.set_len(size)
}

fn open_raw(path: &Path, name: &str) -> Result<Arc<dyn Target>, Failure> {
    Ok(Arc::new(RawTarget::open(path, name, true).map_err(|e| fatal(e.to_string()))?))
}
