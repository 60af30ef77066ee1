//! What the restore of a container is going to do: its volumes, their places in its tree, the map of its ids, its config.
//! Pure: text and options in, a plan or a reason against it out.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{
    ContainerConfig, ContainerError, Fresh, GuestConfig, IdKind, IdMap, MountPoint, Rewrite, Section, Source, Storage,
    StorageCfg, rewrite_for_restore,
};
use crate::guest::conffile::Kind;
use crate::restore::plan::{Device, DiskPlan, Existing, Refusal, check_existing, owner};

#[cfg(test)]
mod tests;

/// Where volumes go unless somebody says otherwise.
const DEFAULT_STORAGE: &str = "local";
/// MiB of memory and of swap of a container whose config does not say.
const DEFAULT_MEMORY: &str = "512";
/// The form of a volume that is a directory and not an image.
pub const SUBVOLUME: &str = "subvol";

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The container to be.
    pub vmid: u32,
    /// Where its volumes go.
    pub storage: Option<String>,
    /// Another root than the backup's.
    pub rootfs: Option<String>,
    /// Other mount points than the backup's, by number.
    pub mount_points: BTreeMap<u32, String>,
    /// Whether its ids are others than the node's; by default as it was.
    pub unprivileged: Option<bool>,
    /// Overwrite an existing container.
    pub force: bool,
    /// New MAC addresses.
    pub unique: bool,
    /// How MAC addresses of this cluster begin; empty for the default.
    pub mac_prefix: String,
    /// Its notes, instead of those in the backup.
    pub description: Option<String>,
    /// Settings that stand above those in the backup.
    pub settings: BTreeMap<String, String>,
}

/// What an archive says about its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived {
    /// `./etc/vzdump/pct.conf`
    pub config: Option<Vec<u8>>,
    /// `./etc/vzdump/pct.fw`
    pub firewall: Option<Vec<u8>>,
    /// Whether there is the config of an OpenVZ container instead.
    pub openvz: bool,
}

/// A volume to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// How and where it is made; its format is `raw` or [`SUBVOLUME`], its name `rootfs` or `mpN`.
    pub disk: DiskPlan,
    /// Its line in the config, with what stood there before.
    pub point: MountPoint,
}

/// What a restore is going to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The container.
    pub vmid: u32,
    /// Whether a container of this id is overwritten.
    pub overwrite: bool,
    /// The volumes, in the order in which they are made: the root first.
    pub volumes: Vec<VolumePlan>,
    /// How its ids are mapped to those of the node; empty if they are the node's.
    pub id_map: Vec<IdMap>,
    /// Firewall rules for it.
    pub firewall: Option<Vec<u8>>,
    /// Volumes of the overwritten container that go once the restore is complete.
    pub replaced: Vec<String>,
    /// Whether it is to be a template again.
    pub template: bool,
    /// What people should know.
    pub warnings: Vec<String>,
    /// Mount points that are no volumes and come back as they were.
    kept: Vec<MountPoint>,
    archived: Vec<u8>,
    request: Request,
}

/// Why there will be no restore.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerRefusal {
    /// There is a guest of this id.
    #[error(transparent)]
    Existing(#[from] Refusal),
    /// The config in the archive.
    #[error(transparent)]
    Config(#[from] ContainerError),
    /// An archive of no container, or of another program.
    #[error(
        "the archive does not begin with './etc/vzdump/pct.conf': if it holds a container's files, say how large its root is to be: --rootfs <storage>:<GiB>"
    )]
    NoConfig,
    /// An archive of OpenVZ.
    #[error(
        "the archive is one of OpenVZ, whose settings cannot be taken over: give --rootfs <storage>:<GiB>, and what else there is to set, as options"
    )]
    OpenVz,
    /// The config has no size.
    #[error("unable to detect disk size - please specify {0} (size)")]
    NoSize(String),
    /// The root was a directory or device of the node.
    #[error("restoring rootfs to {0} mount is only possible by specifying -rootfs manually!")]
    RootIsNoVolume(&'static str),
    /// What was given cannot be a volume.
    #[error("--{key} '{value}' cannot be restored to: {why}")]
    Given {
        /// `rootfs`, `mp0`.
        key: String,
        /// What was given.
        value: String,
        /// Why not, and what would be right.
        why: &'static str,
    },
    /// Two volumes at one place.
    #[error("{0} and {1} are both mounted at '{2}'")]
    SamePlace(String, String, String),
    /// A storage cannot be used.
    #[error("{0}")]
    Storage(String),
    /// A storage does not take containers.
    #[error("storage '{0}' does not support container directories")]
    NoContainers(String),
    /// The container would have no root user.
    #[error("the map of ids says nothing about id 0, whose the container's files are to be")]
    NoRootId,
}

/// Plans the restore of an archive that says this about its container.
///
/// # Errors
/// Why it must not or cannot be done.
pub fn plan(
    archived: &Archived,
    request: &Request,
    storages: &StorageCfg,
    node: &str,
    existing: Option<&Existing>,
) -> Result<Plan, ContainerRefusal> {
    check_existing(Kind::Container, request.vmid, request.force, node, existing)?;
    let text = match &archived.config {
        Some(text) => text.clone(),
        None if request.rootfs.is_some() => Vec::new(),
        None if archived.openvz => return Err(ContainerRefusal::OpenVz),
        None => return Err(ContainerRefusal::NoConfig),
    };
    let old = ContainerConfig::parse(&text);
    let mut plan = Plan {
        vmid: request.vmid,
        overwrite: existing.is_some(),
        volumes: Vec::new(),
        id_map: Vec::new(),
        firewall: archived.firewall.clone(),
        replaced: Vec::new(),
        template: old.is_template(),
        warnings: Vec::new(),
        kept: Vec::new(),
        archived: text,
        request: request.clone(),
    };
    let was = if archived.config.is_some() { old.mount_points()? } else { Vec::new() };
    let was = was.as_slice();
    let points = if request.rootfs.is_none() && request.mount_points.is_empty() {
        plan.as_it_was(was)?
    } else {
        plan.as_given(was)?
    };
    for (point, storage, size) in points {
        if let Some(same) = plan.volumes.iter().find(|volume| volume.point.mp == point.mp) {
            let (one, two) = (same.point.key.clone(), point.key.clone());
            return Err(ContainerRefusal::SamePlace(one, two, point.mp));
        }
        let disk = place(&point.key, plan.volumes.len(), &storage, size, storages, node)?;
        plan.volumes.push(VolumePlan { disk, point });
    }
    plan.id_map = plan.main().id_map()?;
    plan.root_ids()?;
    if let Some(guest) = existing {
        plan.sort_out(&GuestConfig::parse(&guest.config));
    }
    Ok(plan)
}

/// A volume to be: its line, its storage, its size.
type Wanted = (MountPoint, String, u64);

impl Plan {
    fn storage(&self) -> String {
        self.request.storage.clone().unwrap_or_else(|| DEFAULT_STORAGE.to_owned())
    }

    /// Every volume again, on one storage.
    fn as_it_was(&mut self, was: &[MountPoint]) -> Result<Vec<Wanted>, ContainerRefusal> {
        let mut wanted = Vec::new();
        for point in was {
            match &point.source {
                Source::Volume(_) => {
                    if point.excluded().is_some() {
                        self.warnings.push(format!(
                            "mount point {} ('{}') was not in the backup: it is made anew and is empty",
                            point.key, point.mp
                        ));
                    }
                    let size = point.size().ok_or_else(|| ContainerRefusal::NoSize(point.key.clone()))?;
                    wanted.push((point.clone(), self.storage(), size));
                }
                _ if point.is_root() => return Err(ContainerRefusal::RootIsNoVolume(point.source.kind())),
                _ => self.kept.push(point.clone()),
            }
        }
        Ok(wanted)
    }

    /// Only what was given; the root as it was unless it was given, too.
    fn as_given(&mut self, was: &[MountPoint]) -> Result<Vec<Wanted>, ContainerRefusal> {
        let mut wanted = Vec::new();
        match (&self.request.rootfs, was.first()) {
            (Some(value), _) => wanted.push(given("rootfs", value)?),
            (None, Some(root)) => {
                let Source::Volume(_) = root.source else {
                    return Err(ContainerRefusal::RootIsNoVolume(root.source.kind()));
                };
                let size = root.size().ok_or_else(|| ContainerRefusal::NoSize("rootfs".to_owned()))?;
                wanted.push((root.clone(), self.storage(), size));
            }
            (None, None) => return Err(ContainerRefusal::NoConfig),
        }
        for (number, value) in self.request.mount_points.clone() {
            let key = format!("mp{number}");
            if value.trim_start_matches("volume=").starts_with('/') {
                self.kept.push(MountPoint::parse(&key, &value)?);
            } else {
                wanted.push(given(&key, &value)?);
            }
        }
        for point in was.iter().filter(|point| !point.is_root()) {
            let places = wanted.iter().map(|(point, ..)| point).chain(&self.kept);
            if places.clone().any(|other| other.mp == point.mp) {
                continue;
            }
            let its_files = match point.excluded() {
                None => "; its files go into the volume around it",
                Some(_) => "",
            };
            let warning = format!(
                "mount point {} ('{}') of the backup is left out, as others were given{its_files}",
                point.key, point.mp
            );
            self.warnings.push(warning);
        }
        Ok(wanted)
    }

    /// The volumes of the overwritten container, all of which go.
    fn sort_out(&mut self, old: &GuestConfig) {
        let mut volids = BTreeSet::new();
        let snapshots = old.snapshots();
        let sections = snapshots.iter().cloned().map(Section::Snapshot);
        for section in sections.chain([Section::Main, Section::Pending]) {
            for (key, value) in old.properties(&section) {
                let numbered = |name: &str| {
                    key.strip_prefix(name).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
                };
                if key == "rootfs" || numbered("mp") || numbered("unused") {
                    let volume = value.split(',').find(|part| part.starts_with("volume=") || !part.contains('='));
                    let volume = volume.map(|part| part.trim_start_matches("volume=").trim().to_owned());
                    volids.extend(volume.filter(|volid| owner(volid) == Some(self.vmid)));
                }
            }
        }
        if snapshots.iter().any(|name| name != "pve:pending") {
            self.warnings.push(format!("the snapshots of CT {} are lost with its old configuration", self.vmid));
        }
        self.replaced = volids.into_iter().collect();
    }

    /// The ids on the node of the container's root user and group.
    ///
    /// # Errors
    /// When there are none.
    pub fn root_ids(&self) -> Result<(u32, u32), ContainerRefusal> {
        if self.id_map.is_empty() {
            return Ok((0, 0));
        }
        let of = |kind: IdKind| self.id_map.iter().find(|map| map.kind == kind && map.inside == 0);
        match (of(IdKind::User), of(IdKind::Group)) {
            (Some(user), Some(group)) => Ok((user.outside, group.outside)),
            _ => Err(ContainerRefusal::NoRootId),
        }
    }

    /// The config without its volumes and mount points.
    fn main(&self) -> ContainerConfig {
        self.settled(&mut Fresh::random())
    }

    fn settled(&self, fresh: &mut Fresh<'_>) -> ContainerConfig {
        let Request { unique, mac_prefix, unprivileged, settings, description, vmid, .. } = &self.request;
        let rewrite = Rewrite { volumes: BTreeMap::new(), unique: *unique, mac_prefix: mac_prefix.clone() };
        let mut text = rewrite_for_restore(&self.archived, &rewrite, fresh);
        if let Some(description) = description {
            let kept: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').filter(|l| !l.starts_with(b"#")).collect();
            text = [notes(description).as_bytes(), kept.concat().as_slice()].concat();
        }
        let mut config = ContainerConfig::parse(&text);
        let keys: Vec<String> =
            GuestConfig::parse(&text).properties(&Section::Main).into_iter().map(|(key, _)| key).collect();
        let is_mount = |key: &String| key.strip_prefix("mp").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        for key in keys.iter().filter(|key| is_mount(key) || ["rootfs", "template"].contains(&key.as_str())) {
            config.remove(key);
        }
        for (key, value) in settings {
            config.set(key, value);
        }
        match unprivileged {
            Some(true) => config.set("unprivileged", "1"),
            Some(false) => drop(config.remove("unprivileged")),
            None => {}
        }
        let defaults = [
            ("arch", "amd64".to_owned()),
            ("hostname", format!("CT{vmid}")),
            ("memory", DEFAULT_MEMORY.to_owned()),
            ("ostype", "unmanaged".to_owned()),
            ("swap", DEFAULT_MEMORY.to_owned()),
        ];
        for (key, value) in defaults {
            if config.get(key).is_none() {
                config.set(key, &value);
            }
        }
        config
    }

    /// The config of the restored container, given the volume made for each key.
    pub fn config(&self, volumes: &BTreeMap<String, String>, fresh: &mut Fresh<'_>) -> Vec<u8> {
        let mut config = self.settled(fresh);
        for VolumePlan { point, disk } in &self.volumes {
            let mut point = point.clone();
            if let Some(volid) = volumes.get(&point.key) {
                point.source = Source::Volume(volid.clone());
            }
            point.set_size(disk.device.size);
            config.set(&point.key, &point.to_string());
        }
        for point in &self.kept {
            config.set(&point.key, &point.to_string());
        }
        config.to_bytes()
    }
}

/// A volume as an option describes it: `local:4`, `thin:0.5,mp=/data`.
fn given(key: &str, value: &str) -> Result<Wanted, ContainerRefusal> {
    let wrong = |why| ContainerRefusal::Given { key: key.to_owned(), value: value.to_owned(), why };
    let mut point = MountPoint::parse(key, value)?;
    let Source::Volume(volume) = &point.source else {
        return Err(wrong("the root has to be a new volume: '<storage>:<GiB>'"));
    };
    let (storage, size) = volume.split_once(':').ok_or_else(|| wrong("it is no '<storage>:<GiB>'"))?;
    let number = size.parse::<f64>().ok().filter(|gib| gib.is_finite() && (0.0..1e9).contains(gib));
    let gib = number.ok_or_else(|| wrong("a restore makes new volumes: '<storage>:<GiB>', not one that is there"))?;
    let storage = storage.to_owned();
    point.set_option("size", None);
    // Whole KiB, as storages count.
    Ok((point, storage, (gib * f64::from(1 << 20)) as u64 * 1024))
}

/// Where one volume goes, and in which form.
fn place(
    key: &str,
    number: usize,
    id: &str,
    size: u64,
    storages: &StorageCfg,
    node: &str,
) -> Result<DiskPlan, ContainerRefusal> {
    let storage = storages.usable(id, node).map_err(|e| ContainerRefusal::Storage(e.to_string()))?;
    if !storage.content().iter().any(|content| content == "rootdir") {
        return Err(ContainerRefusal::NoContainers(id.to_owned()));
    }
    let form = if is_subvolume(storage, size) { SUBVOLUME } else { "raw" };
    Ok(DiskPlan {
        key: key.to_owned(),
        device: Device { id: u8::try_from(number + 1).unwrap_or(u8::MAX), name: key.to_owned(), size },
        storage: id.to_owned(),
        format: form.to_owned(),
        in_directory: storage.path().is_some(),
        starts_zeroed: false,
    })
}

/// Where a volume is a directory: as the original decides.
fn is_subvolume(storage: &Storage, size: u64) -> bool {
    match storage.kind.as_str() {
        "zfspool" => true,
        "btrfs" if storage.get("quotas").is_some_and(|value| value != "0") => true,
        _ => size == 0 && storage.path().is_some(),
    }
}

/// Notes as they stand in a config: lines that begin with `#`, in which what has a meaning there, and all beyond ASCII, is written `%3A`.
fn notes(text: &str) -> String {
    let mut out = String::new();
    if text.is_empty() {
        return out;
    }
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        out.push('#');
        for byte in line.bytes() {
            match byte {
                b'%' | b':' | 0..=0x1f | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
                plain => out.push(char::from(plain)),
            }
        }
        out.push('\n');
    }
    out
}
