//! `vzkeep unlock <vmid>`: explains who holds a guest's lock, and removes it when that one is gone.

use std::process::ExitCode;

use super::{FAILED, complain, say};
use crate::host::Host;
use crate::job::unlock::unlock;
use crate::schema::Vmid;

/// Unlocks guest `vmid`, or says with `dry_run` what would be done.
pub fn run(vmid: Vmid, dry_run: bool) -> ExitCode {
    match unlock(&Host::from_env(), vmid.get(), dry_run, &mut |line| say(&format!("{line}\n"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error}\n"));
            ExitCode::from(FAILED)
        }
    }
}
