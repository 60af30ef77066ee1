//! Why a guest was not backed up: one type for what any of its phases may say, in the words of the log.

use std::path::PathBuf;

use super::DestinationError;
use super::cluster::ClusterError;
use super::hooks::HookError;
use crate::config::ContainerError;
use crate::guest::container::freeze::FreezeError;
use crate::guest::container::mounts::MountError;
use crate::guest::container::power::ContainerPowerError;
use crate::guest::container::snapshot::SnapshotError;
use crate::guest::container::tree::TreeError;
use crate::guest::fleecing::FleecingError;
use crate::guest::held::HeldError;
use crate::guest::pbs::QemuBackupError;
use crate::guest::power::PowerError;
use crate::guest::vm::VmError;
use crate::host::bridge;
use crate::image::ImageError;
use crate::qemu::QemuError;
use crate::schema::Vmid;
use crate::storage::VolumeError;
use crate::storage::pbs::PbsError;
use crate::transfer::{DraftError, TransferError};

/// Why a guest was not backed up.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("unable to find VM '{0}'")]
    NotFound(Vmid),
    // As the original's VZDump.pm has it: a guest that the cluster restarts must not be stopped behind its back.
    #[error(
        "Cannot execute a backup with stop mode on a HA managed and enabled Service. Use snapshot mode or disable the Service."
    )]
    HighAvailability,
    // The words of `check_running` and of `load_config` there.
    #[error("unable to find configuration file for VM {0} on node '{1}'")]
    Vanished(Vmid, String),
    #[error("Configuration file 'nodes/{1}/{2}/{0}.conf' does not exist")]
    VanishedSince(Vmid, String, &'static str),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("interrupted by signal")]
    Interrupted,
    #[error("mode 'stop' needs the program '{program}', which is not installed: use mode 'snapshot' or 'suspend'", program = bridge::PROGRAM)]
    NoBridge,
    #[error("the VM is paused and cannot shut down: use mode 'snapshot', or resume it first")]
    Paused,
    #[error("CT {0} is frozen and cannot shut down: use mode 'snapshot' or 'suspend', or thaw it first")]
    FrozenBefore(Vmid),
    #[error("The number of protected backups per guest is limited to {most} on storage '{storage}'")]
    TooManyProtected { most: u64, storage: String },
    #[error(
        "There is a max backup limit of {0} enforced by the target storage or the vzdump parameters. Either increase the limit or delete old backups."
    )]
    TooMany(u64),
    #[error("unable to set protected flag - {0}")]
    NotProtected(#[source] Box<GuestError>),
    #[error("error pruning backups - check log")]
    Prune,
    #[error("removing archive {path} failed: {source}", path = path.display())]
    RemoveArchive {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("cannot read the config of VM {0}: {1}")]
    Config(Vmid, #[source] std::io::Error),
    #[error("cannot write the log of VM {0}: {1}")]
    Log(Vmid, #[source] std::io::Error),
    #[error("{what} '{path}' failed: {source}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Held(#[from] HeldError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Fleecing(#[from] FleecingError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("CT {0} was started while it was backed up in mode 'stop'")]
    StartedMeanwhile(Vmid),
    #[error("{what}, which an earlier run left, cannot be removed: {reason}")]
    LeftOver { what: String, reason: String },
    #[error("{what} was off before the backup and cannot be switched off again: {reason}")]
    StaysOn { what: String, reason: String },
    #[error(transparent)]
    Freeze(FreezeError),
    #[error("volume '{volid}' is not mounted: '{path}' is empty or on another file system", path = path.display())]
    NotMounted { volid: String, path: PathBuf },
    #[error("CT {0} was started anew while it was backed up")]
    StartedAnew(Vmid),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    ContainerPower(ContainerPowerError),
    #[error(transparent)]
    StorageSnapshot(#[from] SnapshotError),
    #[error(transparent)]
    Tree(TreeError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Power(PowerError),
    #[error(transparent)]
    Qemu(QemuError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Draft(#[from] DraftError),
    #[error("{0}")]
    Transfer(TransferError),
    #[error(transparent)]
    Pbs(#[from] PbsError),
    #[error("{0}")]
    QemuBackup(QemuBackupError),
    #[error("{0} a Proxmox Backup Server yet: use a storage for archives")]
    NotToServer(&'static str),
    #[error("{0}; {1}")]
    SnapshotBroke(TransferError, String),
}

impl From<PowerError> for GuestError {
    fn from(error: PowerError) -> Self {
        if matches!(error, PowerError::Interrupted) { Self::Interrupted } else { Self::Power(error) }
    }
}

impl From<ContainerPowerError> for GuestError {
    fn from(error: ContainerPowerError) -> Self {
        if matches!(error, ContainerPowerError::Interrupted) { Self::Interrupted } else { Self::ContainerPower(error) }
    }
}

impl From<FreezeError> for GuestError {
    fn from(error: FreezeError) -> Self {
        if matches!(error, FreezeError::Interrupted) { Self::Interrupted } else { Self::Freeze(error) }
    }
}

impl From<TreeError> for GuestError {
    fn from(error: TreeError) -> Self {
        if matches!(error, TreeError::Interrupted) { Self::Interrupted } else { Self::Tree(error) }
    }
}

impl From<QemuError> for GuestError {
    fn from(error: QemuError) -> Self {
        if matches!(error, QemuError::Cancelled) { Self::Interrupted } else { Self::Qemu(error) }
    }
}

impl From<QemuBackupError> for GuestError {
    fn from(error: QemuBackupError) -> Self {
        match error {
            QemuBackupError::Qemu(error) => error.into(),
            other => Self::QemuBackup(other),
        }
    }
}

impl From<TransferError> for GuestError {
    fn from(error: TransferError) -> Self {
        if matches!(error, TransferError::Cancelled) { Self::Interrupted } else { Self::Transfer(error) }
    }
}
