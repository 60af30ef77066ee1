//! What the node's files say: `/etc/vzdump.conf`, the cluster's files below `/etc/pve`, the configurations of guests. Text in,
//! values out: nothing here opens a file, and nothing here panics, whatever stands in one. Bytes that are no text are replaced
//! before; only the configurations of guests, which are stored and edited, are read as bytes.

mod blob;
mod cluster;
mod container;
mod datacenter;
mod disks;
mod guest;
mod ha;
mod jobs_cfg;
mod rewrite;
mod sections;
mod storage_cfg;
mod user_cfg;
mod vzdump_conf;
mod vzdump_cron;
mod vzkeep_conf;

pub use blob::{MapLine, config_blob, map_lines};
pub use cluster::{MEMBERS_PATH, Residence, Vmlist, cluster_name};
pub use container::{ContainerConfig, ContainerError, IdKind, IdMap, MOUNT_POINTS, MountPoint, Source};
pub use datacenter::{DatacenterCfg, bandwidth_limit};
pub use disks::{BackupVolume, Disk, archive_order, backup_volumes, disks};
pub use guest::{Agent, GuestConfig, Section};
pub use ha::HaResources;
pub use jobs_cfg::{BackupJob, JobError, JobsCfg, JobsJsonError};
pub use rewrite::{Fresh, Rewrite, rewrite_for_restore};
pub use sections::{CfgSection, Fault, Sections};
pub use storage_cfg::{Storage, StorageCfg, StorageError};
pub use user_cfg::{Pool, UserCfg};
pub use vzdump_conf::VzdumpConf;
pub use vzdump_cron::VzdumpCron;
pub use vzkeep_conf::VzkeepConf;

#[cfg(test)]
mod tests;
