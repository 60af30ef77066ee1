//! LVM2: the volume groups whose physical volumes are among some disks and partitions, and their linear and striped
//! volumes as images. The text in which a group describes itself is [`text`]'s business.
//!
//! Written from the description of the format in LVM2's sources (format_text/layout.h, label.h).

#[cfg(test)]
mod tests;
mod text;
mod volume;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::FsError;
use super::bytes::{is_at, le32, le64};
use crate::image::Image;
use text::{Section, Value};
use volume::{Segment, Stripe, Volume};

/// Bytes of a sector in LVM's numbers, whatever the disk has.
const SECTOR: u64 = 512;
/// Bytes of the longest description of a group; an area of it has 1 MiB unless told otherwise.
const LONGEST: u64 = 16 << 20;
/// Pieces of one volume that are looked at.
const MOST_SEGMENTS: u64 = 1 << 18;
/// What checksums start with.
const SEED: u32 = 0xf597_a6cf;
const AREA_MAGIC: &[u8; 16] = b"\x20LVM2\x20x[5A%r0N*>";

fn damaged(why: impl Into<String>) -> FsError {
    FsError::damaged("volume group", why)
}

/// A physical volume.
struct Physical {
    /// 32 characters.
    uuid: String,
    image: Arc<dyn Image>,
    /// Where descriptions are: offset, bytes.
    areas: Vec<(u64, u64)>,
}

/// A logical volume.
pub struct LogicalVolume {
    /// Its name.
    pub name: String,
    /// The volume, or why it cannot be read: a sentence that begins with a verb.
    pub image: Result<Arc<dyn Image>, String>,
}

/// A volume group.
pub struct VolumeGroup {
    /// Its name; where several have the same, with a piece of the UUID behind it.
    pub name: String,
    /// Volumes that are meant to be seen, sorted by name.
    pub volumes: Vec<LogicalVolume>,
}

/// The volume groups whose physical volumes `images` are, and what is wrong with those that are damaged.
///
/// # Errors
/// When an image cannot be read.
pub fn volume_groups(images: &[Arc<dyn Image>]) -> Result<(Vec<VolumeGroup>, Vec<String>), FsError> {
    let (mut notes, mut physical) = (Vec::new(), Vec::new());
    for image in images {
        match label(image) {
            Ok(found) => physical.push(found),
            Err(e @ FsError::Image(_)) => return Err(e),
            Err(e) => notes.push(format!("{}: {e}", image.name())),
        }
    }
    // Of each group the newest description.
    let mut newest: BTreeMap<String, (u64, String, Section)> = BTreeMap::new();
    for volume in &physical {
        for area in &volume.areas {
            let found = description(&*volume.image, *area).and_then(|text| text.map(|t| group_of(&t)).transpose());
            match found {
                Ok(Some((id, number, name, section))) => {
                    if newest.get(&id).is_none_or(|(known, ..)| *known < number) {
                        newest.insert(id, (number, name, section));
                    }
                }
                Ok(None) => {}
                Err(e @ FsError::Image(_)) => return Err(e),
                Err(e) => notes.push(format!("{}: {e}", volume.image.name())),
            }
        }
    }
    let mut groups: Vec<VolumeGroup> = Vec::new();
    for (id, (_, name, section)) in newest {
        let name = match groups.iter().any(|group| group.name == name) {
            true => format!("{name}-{}", id.get(..6).unwrap_or(&id)),
            false => name,
        };
        match volumes(&name, &section, &physical) {
            Ok(volumes) => groups.push(VolumeGroup { name, volumes }),
            Err(e) => notes.push(format!("{name}: {e}")),
        }
    }
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    notes.sort();
    notes.dedup();
    Ok((groups, notes))
}

/// LVM's checksum: CRC-32 without the inversions.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial(!SEED);
    sum.update(bytes);
    !sum.finalize()
}

/// What stands in one of the first four sectors of a physical volume.
fn label(image: &Arc<dyn Image>) -> Result<Physical, FsError> {
    let mut head = vec![0; 2048.min(image.size()) as usize];
    image.read_at(&mut head, 0)?;
    for (number, sector) in (0..).zip(head.chunks_exact(SECTOR as usize)) {
        if !is_at(sector, 0, b"LABELONE") || !is_at(sector, 24, b"LVM2 001") {
            continue;
        }
        if le64(sector, 8) != number || le32(sector, 16) != checksum(&sector[20..]) {
            return Err(damaged("the label of a physical volume has a wrong checksum"));
        }
        let header = sector.get(le32(sector, 20) as usize..).unwrap_or_default();
        let uuid = header.get(..32).and_then(|raw| std::str::from_utf8(raw).ok());
        let uuid = uuid.ok_or_else(|| damaged("the label of a physical volume makes no sense"))?.to_owned();
        // Two lists of places, each of which ends with zeros: data, descriptions.
        let places: Vec<_> =
            header.get(40..).unwrap_or_default().chunks_exact(16).map(|p| (le64(p, 0), le64(p, 8))).collect();
        let mut lists = places.split(|place| *place == (0, 0));
        let areas = lists.nth(1).unwrap_or_default().to_vec();
        return Ok(Physical { uuid, image: image.clone(), areas });
    }
    Err(damaged("there is no label of a physical volume"))
}

/// The description in an area; none when the area is empty or not to be used.
fn description(image: &dyn Image, (start, size): (u64, u64)) -> Result<Option<String>, FsError> {
    let wrong = |why: &str| damaged(format!("an area of its descriptions {why}"));
    let mut head = [0; 512];
    image.read_at(&mut head, start)?;
    if le32(&head, 0) != checksum(&head[4..]) || head[4..20] != *AREA_MAGIC || le64(&head, 24) != start {
        return Err(wrong("has a header that makes no sense"));
    }
    let size = le64(&head, 32).min(size);
    let (offset, len, sum, flags) = (le64(&head, 40), le64(&head, 48), le32(&head, 56), le32(&head, 60));
    if offset == 0 || flags & 1 != 0 {
        return Ok(None);
    }
    if !(SECTOR..size).contains(&offset) || len > LONGEST || len > size - SECTOR {
        return Err(wrong(&format!("is said to hold one of {len} bytes at {offset}")));
    }
    // The area is a ring.
    let mut text = vec![0; len as usize];
    let first = len.min(size - offset) as usize;
    image.read_at(&mut text[..first], start.saturating_add(offset))?;
    if first < text.len() {
        image.read_at(&mut text[first..], start.saturating_add(SECTOR))?;
    }
    if checksum(&text) != sum {
        return Err(wrong("holds one with a wrong checksum"));
    }
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(text).into_owned()))
}

/// UUID, number, name and content of the group that is described.
fn group_of(text: &str) -> Result<(String, u64, String, Section), FsError> {
    let sections = text::parse(text).map_err(damaged)?;
    let group = sections.into_iter().find_map(|(name, value)| match value {
        Value::Section(section) => Some((name, section)),
        _ => None,
    });
    let (name, section) = group.ok_or_else(|| damaged("its description is of no group"))?;
    let id = section.text("id").unwrap_or_default().to_owned();
    let number = section.number("seqno").ok_or_else(|| damaged("its description has no number"))?;
    Ok((id, number, named(&name)?, section))
}

/// A name that may be part of a path.
fn named(name: &str) -> Result<String, FsError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    if name.is_empty() || name.len() > 127 || matches!(name, "." | "..") || !name.chars().all(fits) {
        return Err(damaged(format!("'{}' is no name of a volume", name.escape_debug())));
    }
    Ok(name.to_owned())
}

/// The volumes of a group that are meant to be seen.
fn volumes(group: &str, section: &Section, physical: &[Physical]) -> Result<Vec<LogicalVolume>, FsError> {
    let sectors = section.number("extent_size").filter(|size| *size > 0 && *size < 1 << 40);
    let extent = sectors.ok_or_else(|| damaged("its extents have no size"))? * SECTOR;
    let mut places: HashMap<&str, Place<'_>> = HashMap::new();
    for (name, volume) in section.section("physical_volumes").into_iter().flat_map(Section::sections) {
        let id = volume.text("id").unwrap_or_default().replace('-', "");
        let image = physical.iter().find(|known| known.uuid == id).map(|known| &known.image);
        let start = volume.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR));
        places.insert(name, Place { image, start: start.unwrap_or(u64::MAX), id });
    }
    let mut found = Vec::new();
    for (name, volume) in section.section("logical_volumes").into_iter().flat_map(Section::sections) {
        if !volume.texts("status").any(|status| status == "VISIBLE") {
            continue;
        }
        let name = named(name)?;
        let full = format!("lvm/{group}/{name}");
        let image = segments(volume, extent, &places).and_then(|segments| {
            let volume = Volume::new(&full, segments)?;
            Ok(Arc::new(volume) as Arc<dyn Image>)
        });
        found.push(LogicalVolume { name, image });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// A physical volume as its group knows it.
struct Place<'a> {
    image: Option<&'a Arc<dyn Image>>,
    start: u64,
    id: String,
}

/// The pieces of a volume, or why they are none that can be read.
fn segments(volume: &Section, extent: u64, places: &HashMap<&str, Place<'_>>) -> Result<Vec<Segment>, String> {
    let strange = || "is described in a way that makes no sense".to_owned();
    let count = volume.number("segment_count").filter(|count| *count <= MOST_SEGMENTS).ok_or_else(strange)?;
    let described: HashMap<_, _> = volume.sections().collect();
    let mut segments = Vec::new();
    for number in 1..=count {
        let segment = *described.get(format!("segment{number}").as_str()).ok_or_else(strange)?;
        let bytes = |key: &str| segment.number(key)?.checked_mul(extent);
        let (start, len) = (bytes("start_extent").ok_or_else(strange)?, bytes("extent_count").ok_or_else(strange)?);
        let kind = segment.text("type").unwrap_or_default();
        if kind != "striped" {
            let kind = match kind {
                "thin" => "a thin volume",
                "thin-pool" => "a pool of thin volumes",
                "snapshot" => "a snapshot",
                "cache" | "cache-pool" | "writecache" => "a cached volume",
                "mirror" | "vdo" | "vdo-pool" | "error" | "zero" | "integrity" => kind,
                kind if kind.starts_with("raid") => "a RAID volume",
                _ => "of a kind nobody knows",
            };
            return Err(format!("is {kind}; only linear and striped volumes are read here"));
        }
        let mut stripes = Vec::new();
        let list = segment.list("stripes").ok_or_else(strange)?;
        for pair in list.chunks_exact(2) {
            let (Value::Text(name), Value::Number(first)) = (&pair[0], &pair[1]) else { return Err(strange()) };
            let place = places.get(name.as_str()).ok_or_else(strange)?;
            let offset =
                u64::try_from(*first).ok().and_then(|first| first.checked_mul(extent)?.checked_add(place.start));
            let image = place.image.ok_or_else(|| {
                format!("lies in part on the physical volume {}, which is on none of the archive's disks", place.id)
            })?;
            stripes.push(Stripe { image: image.clone(), offset: offset.ok_or_else(strange)? });
        }
        let width = match stripes.len() as u64 {
            0 => return Err(strange()),
            1 => len,
            _ => segment
                .number("stripe_size")
                .and_then(|s| s.checked_mul(SECTOR))
                .filter(|w| *w > 0)
                .ok_or_else(strange)?,
        };
        segments.push(Segment { start, len, width: width.max(1), stripes });
    }
    segments.sort_by_key(|segment| segment.start);
    Ok(segments)
}

/// Does with any bytes what is done with the disk of a physical volume. For fuzzing.
pub(super) fn rehearse(bytes: &[u8]) {
    text::parse(&String::from_utf8_lossy(bytes)).map(drop).unwrap_or_default();
    let disk: Arc<dyn Image> = Arc::new(crate::image::MemImage::new("disk", bytes.to_vec()));
    // As if its checksums were good, too.
    if let Ok((id, _, name, section)) = group_of(&String::from_utf8_lossy(bytes)) {
        let uuid = id.replace('-', "");
        let disk = Physical { uuid, image: disk.clone(), areas: Vec::new() };
        read_some(volumes(&name, &section, &[disk]).unwrap_or_default());
    }
    let (groups, _) = volume_groups(&[disk]).unwrap_or_default();
    groups.into_iter().for_each(|group| read_some(group.volumes));
}

fn read_some(volumes: Vec<LogicalVolume>) {
    for image in volumes.into_iter().filter_map(|volume| volume.image.ok()) {
        let mut buf = [0; 4096];
        let len = image.size().min(4096) as usize;
        image.read_at(&mut buf[..len], image.size() - len as u64).unwrap_or_default();
    }
}
