//! The archive header: UUID, time, configuration files and the list of disks.

use std::fmt::Display;
use std::io::{self, Read};

use md5::{Digest, Md5};

use super::{Damage, Device, MAX_DISK, MAX_HEADER, VmaError, array, be32, be64};

const MAGIC: &[u8; 4] = b"VMA\0";
const MD5_AT: usize = 32;
const CONFIG_NAMES: usize = 2044;
const CONFIG_DATA: usize = 3068;
const CONFIGS: usize = 256;
const DEVICES: usize = 4096;
const DEVICE_INFO: usize = 32;
const BLOBS: usize = 12288;

/// What the header of an archive says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Identity of the archive, repeated in every extent.
    pub uuid: [u8; 16],
    /// Time of the backup, seconds since 1970.
    pub ctime: i64,
    /// Configuration files, name and content: `qemu-server.conf`.
    pub configs: Vec<(String, Vec<u8>)>,
    /// The disks, by number.
    pub devices: Vec<Device>,
}

impl Header {
    /// The disk with number `id`.
    pub fn device(&self, id: u8) -> Option<&Device> {
        self.devices.iter().find(|d| d.id == id)
    }

    /// The configuration file called `name`.
    pub fn config(&self, name: &str) -> Option<&[u8]> {
        self.configs.iter().find(|c| c.0 == name).map(|c| c.1.as_slice())
    }

    /// Clusters of all disks together.
    pub fn clusters(&self) -> u64 {
        self.devices.iter().map(Device::clusters).sum()
    }

    /// The header's bytes.
    ///
    /// # Errors
    /// [`VmaError::Unfit`] when there are too many disks or files, one of them is too large, or a name cannot be used.
    pub fn encode(&self) -> Result<Vec<u8>, VmaError> {
        let unfit = |what: String| Err(VmaError::Unfit(what));
        if self.configs.len() > CONFIGS {
            return unfit(format!("{} configuration files, at most {CONFIGS}", self.configs.len()));
        }
        let mut head = vec![0; BLOBS];
        // The first byte of the blob buffer is unused, so that offset 0 can mean "none".
        let mut blobs = vec![0];
        for (i, (name, data)) in self.configs.iter().enumerate() {
            check_name(name).map_err(VmaError::Unfit)?;
            put32(&mut head, CONFIG_NAMES + 4 * i, add_blob(&mut blobs, name, &with_nul(name))?);
            put32(&mut head, CONFIG_DATA + 4 * i, add_blob(&mut blobs, name, data)?);
        }
        for (i, device) in self.devices.iter().enumerate() {
            check_name(&device.name).map_err(VmaError::Unfit)?;
            if device.id == 0 || self.devices[..i].iter().any(|d| d.id == device.id) {
                return unfit(format!("{} as disk number {}, which is 0 or taken", device.name, device.id));
            }
            if device.size == 0 || device.size > MAX_DISK {
                return unfit(format!("{} of {} bytes, only 1 to {MAX_DISK}", device.name, device.size));
            }
            let at = DEVICES + DEVICE_INFO * usize::from(device.id);
            put32(&mut head, at, add_blob(&mut blobs, &device.name, &with_nul(&device.name))?);
            head[at + 8..at + 16].copy_from_slice(&device.size.to_be_bytes());
        }
        let blob_size = blobs.len();
        head.append(&mut blobs);
        head.resize(head.len().next_multiple_of(512), 0);
        head[..4].copy_from_slice(MAGIC);
        put32(&mut head, 4, 1);
        head[8..24].copy_from_slice(&self.uuid);
        head[24..32].copy_from_slice(&self.ctime.to_be_bytes());
        let size = head.len();
        put32(&mut head, 48, BLOBS as u32);
        put32(&mut head, 52, blob_size as u32);
        put32(&mut head, 56, size as u32);
        let sum: [u8; 16] = Md5::digest(&head).into();
        head[MD5_AT..MD5_AT + 16].copy_from_slice(&sum);
        Ok(head)
    }

    /// Reads the header from the start of a stream. Returns it and its length in bytes.
    ///
    /// # Errors
    /// When the stream fails, ends early, or is not a VMA archive.
    pub fn read(input: &mut dyn Read) -> Result<(Self, u64), VmaError> {
        let mut head = Vec::new();
        read_up_to(input, &mut head, BLOBS)?;
        if head.len() >= 4 && &head[..4] != MAGIC {
            return Err(damaged(0, Damage::HeaderMagic(array(&head, 0))));
        }
        if head.len() < BLOBS {
            return Err(damaged(head.len() as u64, Damage::Truncated("the header")));
        }
        let version = be32(&head, 4);
        if version != 1 {
            return Err(damaged(4, Damage::Version(version)));
        }
        let size = be32(&head, 56) as usize;
        if !(BLOBS..=MAX_HEADER).contains(&size) {
            return Err(layout(56, format_args!("{size} bytes long, possible are {BLOBS} to {MAX_HEADER}")));
        }
        // Grows with what really comes: an announced size alone allocates nothing.
        read_up_to(input, &mut head, size)?;
        if head.len() < size {
            return Err(damaged(head.len() as u64, Damage::Truncated("the header")));
        }
        Ok((Self::decode(&mut head)?, size as u64))
    }

    /// The same for a header that may be damaged: also says whether its checksum is right.
    ///
    /// # Errors
    /// When it says nothing that can be used.
    pub fn read_damaged(input: &mut dyn Read) -> Result<(Self, u64, bool), VmaError> {
        let mut head = Vec::new();
        read_up_to(input, &mut head, BLOBS)?;
        // Its own checksum is taken out of what it is about, and put right.
        let size = if head.len() < BLOBS { 0 } else { be32(&head, 56) as usize };
        if (BLOBS..=MAX_HEADER).contains(&size) {
            read_up_to(input, &mut head, size)?;
        }
        let sound = Self::read(&mut head.as_slice());
        if let Ok((header, len)) = sound {
            return Ok((header, len, true));
        }
        if size >= BLOBS && head.len() == size {
            head[MD5_AT..MD5_AT + 16].fill(0);
            let sum: [u8; 16] = Md5::digest(&head).into();
            head[MD5_AT..MD5_AT + 16].copy_from_slice(&sum);
        }
        Self::read(&mut head.as_slice()).map(|(header, len)| (header, len, false))
    }

    fn decode(head: &mut [u8]) -> Result<Self, VmaError> {
        let sum: [u8; 16] = array(head, MD5_AT);
        head[MD5_AT..MD5_AT + 16].fill(0);
        if <[u8; 16]>::from(Md5::digest(&*head)) != sum {
            return Err(damaged(MD5_AT as u64, Damage::HeaderChecksum));
        }
        let (start, len) = (be32(head, 48) as usize, be32(head, 52) as usize);
        if start < BLOBS || start.checked_add(len).is_none_or(|end| end > head.len()) {
            return Err(layout(48, format_args!("its names and files ({len} bytes at {start}) lie outside")));
        }
        let blobs = &head[start..start + len];
        let mut configs: Vec<(String, Vec<u8>)> = Vec::new();
        for i in 0..CONFIGS {
            let (name_at, data_at) = (CONFIG_NAMES + 4 * i, CONFIG_DATA + 4 * i);
            let (name, data) = (be32(head, name_at), be32(head, data_at));
            if name == 0 && data == 0 {
                continue;
            }
            let name = name_blob(blobs, name, name_at)?;
            if configs.iter().any(|c| c.0 == name) {
                return Err(layout(name_at, format_args!("two configuration files are called '{name}'")));
            }
            configs.push((name, blob(blobs, data, data_at)?.to_vec()));
        }
        let mut devices = Vec::new();
        for id in 1..=255u8 {
            let at = DEVICES + DEVICE_INFO * usize::from(id);
            let (name, size) = (be32(head, at), be64(head, at + 8));
            if name == 0 && size == 0 {
                continue;
            }
            let name = name_blob(blobs, name, at)?;
            if devices.iter().any(|d: &Device| d.name == name) {
                return Err(layout(at, format_args!("two disks are called '{name}'")));
            }
            if size == 0 || size > MAX_DISK {
                return Err(layout(at + 8, format_args!("{name} has {size} bytes, possible are 1 to {MAX_DISK}")));
            }
            devices.push(Device { id, name, size });
        }
        Ok(Self { uuid: array(head, 8), ctime: be64(head, 24).cast_signed(), configs, devices })
    }
}

fn damaged(offset: u64, damage: Damage) -> VmaError {
    VmaError::Damaged { offset, damage }
}

fn layout(offset: usize, what: impl Display) -> VmaError {
    damaged(offset as u64, Damage::HeaderLayout(what.to_string()))
}

fn put32(head: &mut [u8], at: usize, value: u32) {
    head[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn with_nul(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Names become file names on restore, so what would leave a directory or a line is refused.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') || name.contains(char::is_control) {
        return Err(format!("the name {name:?}: it is empty, or has a slash or control characters"));
    }
    Ok(())
}

/// Appends a blob: its length (little endian, unlike everything else), then its bytes. Returns its offset.
fn add_blob(blobs: &mut Vec<u8>, name: &str, data: &[u8]) -> Result<u32, VmaError> {
    let Ok(len) = u16::try_from(data.len()) else {
        return Err(VmaError::Unfit(format!("{name} with {} bytes, at most {}", data.len(), u16::MAX)));
    };
    let at = blobs.len() as u32;
    blobs.extend_from_slice(&len.to_le_bytes());
    blobs.extend_from_slice(data);
    Ok(at)
}

fn blob(blobs: &[u8], offset: u32, field: usize) -> Result<&[u8], VmaError> {
    let at = offset as usize;
    let bytes = || {
        let len = blobs.get(at..at.checked_add(2)?)?;
        let len = usize::from(u16::from_le_bytes(array(len, 0)));
        blobs.get(at + 2..(at + 2).checked_add(len)?)
    };
    match bytes() {
        Some(bytes) if at != 0 => Ok(bytes),
        _ => Err(layout(field, format_args!("a name or file at {at} lies outside"))),
    }
}

fn name_blob(blobs: &[u8], offset: u32, field: usize) -> Result<String, VmaError> {
    let bytes = blob(blobs, offset, field)?;
    let Some(end) = bytes.iter().position(|b| *b == 0) else {
        return Err(layout(field, "a name has no end"));
    };
    let name = std::str::from_utf8(&bytes[..end]).map_err(|_| layout(field, "a name is not UTF-8"))?;
    check_name(name).map_err(|why| layout(field, why))?;
    Ok(name.to_owned())
}

/// Reads until `head` has `size` bytes or the stream ends.
fn read_up_to(input: &mut dyn Read, head: &mut Vec<u8>, size: usize) -> Result<(), VmaError> {
    let rest = (size - head.len()) as u64;
    match input.take(rest).read_to_end(head) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(source) => Err(VmaError::Read { offset: head.len() as u64, source }),
    }
}
