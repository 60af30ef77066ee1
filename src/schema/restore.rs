//! `qmrestore`: its options, typed.

use super::{Params, UsageError, Vmid, parse, tables::QMRESTORE};

/// The options of one `qmrestore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOptions {
    /// A path, a volume id, or `-` for standard input.
    pub archive: String,
    /// The guest to make.
    pub vmid: Vmid,
    /// Where the disks go; else each to the storage it came from.
    pub storage: Option<String>,
    /// Replace a guest that exists.
    pub force: bool,
    /// New MAC addresses and machine ids.
    pub unique: bool,
    /// Limit in bytes a second; zero lifts those of the storages.
    pub bwlimit: Option<u64>,
    /// Start the guest afterwards.
    pub start: bool,
    /// Start the guest at once, and restore behind it.
    pub live: bool,
}

impl RestoreOptions {
    /// Reads the arguments after the program's name (or after `qmrestore`).
    ///
    /// # Errors
    /// The text for standard error; the exit code is 255. An option that cannot be honoured is refused, not ignored.
    pub fn parse(args: &[String]) -> Result<Self, UsageError> {
        let params = parse(&QMRESTORE, args)?;
        let refuse = |name: &str, reason: &str| Err(UsageError::param(&QMRESTORE, name, reason));
        if params.flag("live-restore") && params.text("archive") == Some("-") {
            return refuse(
                "live-restore",
                "standard input can be read only once and in order; give the archive by its path",
            );
        }
        if params.has("pool") {
            return refuse(
                "pool",
                "not supported; add the VM to its pool with 'pvesh set /pools/<pool>' after the restore",
            );
        }
        Self::from_params(&params).map_err(|reason| UsageError::param(&QMRESTORE, "vmid", &reason))
    }

    fn from_params(params: &Params) -> Result<Self, String> {
        let text = |name: &str| params.text(name).map(str::to_owned);
        // KiB/s, fractions allowed; a fraction of a byte is still a limit.
        let bwlimit =
            params.text("bwlimit").and_then(|kib| kib.parse::<f64>().ok()).map(|kib| (kib * 1024.0).ceil() as u64);
        Ok(Self {
            archive: text("archive").unwrap_or_default(),
            vmid: params.text("vmid").unwrap_or_default().parse().map_err(|e| format!("invalid format - {e}\n"))?,
            storage: text("storage"),
            force: params.flag("force"),
            unique: params.flag("unique"),
            bwlimit,
            start: params.flag("start"),
            live: params.flag("live-restore"),
        })
    }
}
