//! What the node's files say: `/etc/vzdump.conf`, `/etc/pve/storage.cfg`, the configurations of guests. Text in, values
//! out: nothing here opens a file, and nothing here panics, whatever stands in one.

mod blob;
mod disks;
mod guest;
mod jobs_cfg;
mod rewrite;
mod storage_cfg;
mod vzdump_conf;
mod vzdump_cron;

pub use blob::{MapLine, config_blob, map_lines};
pub use disks::{BackupVolume, Disk, archive_order, backup_volumes, disks};
pub use guest::{Agent, GuestConfig, Section};
pub use jobs_cfg::{BackupJob, JobsCfg, JobsJsonError};
pub use rewrite::{Fresh, Rewrite, rewrite_for_restore};
pub use storage_cfg::{Storage, StorageCfg, StorageError};
pub use vzdump_conf::VzdumpConf;
pub use vzdump_cron::VzdumpCron;

#[cfg(test)]
mod tests;
