//! A container as its config describes it, and what can be done to it and its volumes for a backup: its power switch, its
//! freezer, its volumes mounted where nobody else sees it, snapshots of its storages, its tree read by `tar` and `rsync`.

pub mod activate;
pub mod complaints;
pub mod freeze;
pub mod mounts;
pub mod power;
pub mod snapshot;
pub mod tree;
pub mod view;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::config::{ContainerConfig, ContainerError, IdKind, IdMap, MountPoint};
use crate::host::{Host, child};

/// How long a command of a storage may take: creating a snapshot, mounting it.
const COMMAND: Duration = Duration::from_secs(120);

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its number.
    pub vmid: u32,
    /// Its config file.
    pub config: ContainerConfig,
    /// Root and mount points, in the order they are listed.
    pub points: Vec<MountPoint>,
    /// How its ids are those of the node; empty if they are the same.
    pub id_map: Vec<IdMap>,
}

impl Container {
    /// Reads its config.
    ///
    /// # Errors
    /// When a volume or the map of ids cannot be understood.
    pub fn new(vmid: u32, config: ContainerConfig) -> Result<Self, ContainerError> {
        let (points, id_map) = (config.mount_points()?, config.id_map()?);
        Ok(Self { vmid, config, points, id_map })
    }

    /// What goes into the archive.
    pub fn included(&self) -> impl Iterator<Item = &MountPoint> {
        self.points.iter().filter(|point| point.excluded().is_none())
    }

    /// What does not.
    pub fn excluded(&self) -> impl Iterator<Item = (&MountPoint, &'static str)> {
        self.points.iter().filter_map(|point| Some((point, point.excluded()?)))
    }

    /// The node's user and group that are root in the container.
    pub fn root_ids(&self) -> (u32, u32) {
        let first = |kind| {
            let root = |map: &&IdMap| map.kind == kind && map.inside == 0;
            self.id_map.iter().find(root).map_or(0, |map| map.outside)
        };
        (first(IdKind::User), first(IdKind::Group))
    }
}

/// As [`commands::output`](super::commands::output), for a command that is to be short.
fn output(host: &Host, program: &str, args: &[&str]) -> Result<String, String> {
    child::said(host.command(program).args(args), Stdio::null(), Some(COMMAND))
}

/// Where the volumes are mounted, in a namespace of our own; as a path of the node.
pub fn mount_place() -> PathBuf {
    PathBuf::from("/mnt/vzsnap0")
}
