//! Which guests a job backs up: what was asked for, held against what the cluster has. Nothing is read here, see
//! [`super::cluster`]. The rules are those of the original's `get_included_guests` and of what its command does with the answer;
//! permissions do not apply, since the command line is root's.

use crate::config::{UserCfg, Vmlist};
use crate::schema::{Vmid, VzdumpRequest, tables::VZDUMP};

/// What was asked for. Only the command line (or a job) counts: `all`, `pool`, `exclude` and `vmid` in `/etc/vzdump.conf` select
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The guests named, with repetitions.
    pub vmids: Vec<Vmid>,
    /// All guests; also when only `exclude` was given.
    pub all: bool,
    /// Guests that `all` leaves out. A pool is not narrowed by it.
    pub exclude: Vec<Vmid>,
    /// The guests of this pool; it stands above everything else.
    pub pool: Option<String>,
    /// `node` was given (and is this one): guests elsewhere are not even mentioned.
    pub only_here: bool,
}

/// The guests of a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Those that are backed up, by number, with repetitions: the guests of this node, and those that no node has. The latter
    /// are there to fail where somebody sees it.
    pub local: Vec<Vmid>,
    /// Guests of other nodes, by number.
    pub external: Vec<Vmid>,
}

/// There is nothing to select from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// No pool of this name.
    #[error("pool '{0}' does not exist")]
    NoPool(String),
    /// The file ends in the middle of the pool.
    #[error("pool '{0}' is cut off in the middle in '{path}': which guests it has is not known", path = UserCfg::PATH)]
    CutPool(String),
}

impl Wanted {
    /// What `request` asks for.
    pub fn new(request: &VzdumpRequest) -> Self {
        let params = request.params();
        let vmids = |name| params.items(&VZDUMP, name).iter().filter_map(|item| item.parse().ok()).collect();
        let pool = params.text("pool").map(str::to_owned);
        Self {
            vmids: vmids("vmid"),
            all: params.flag("all") || (params.has("exclude") && pool.is_none()),
            exclude: vmids("exclude"),
            pool,
            only_here: params.has("node"),
        }
    }

    /// Whether there is anything to do: without a guest of this node only `all` goes on, to say so in its log.
    pub fn runs_with(&self, selection: &Selection) -> bool {
        self.all || !selection.local.is_empty()
    }
}

impl Selection {
    /// The guest the task is listed under: the only one.
    pub fn task_id(&self) -> Option<Vmid> {
        match self.local.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }
}

/// Holds `wanted` against the guests (`vmlist`) and pools (`users`) of the cluster, on the node named `node`.
///
/// # Errors
/// When the pool is not there.
pub fn select(wanted: &Wanted, vmlist: &Vmlist, users: &UserCfg, node: &str) -> Result<Selection, SelectionError> {
    let mut vmids: Vec<Vmid> = if let Some(name) = &wanted.pool {
        let pool = users.pool(name).ok_or_else(|| SelectionError::NoPool(name.clone()))?;
        if pool.cut {
            return Err(SelectionError::CutPool(name.clone()));
        }
        // A pool keeps guests that were deleted long ago: nobody asked for those by name.
        pool.vmids.iter().copied().filter(|vmid| vmlist.get(*vmid).is_some()).collect()
    } else if !wanted.vmids.is_empty() {
        wanted.vmids.clone()
    } else if wanted.all {
        vmlist.iter().map(|(vmid, _)| vmid).filter(|vmid| !wanted.exclude.contains(vmid)).collect()
    } else {
        Vec::new()
    };
    vmids.sort_unstable();
    let (local, mut external): (Vec<_>, Vec<_>) =
        vmids.into_iter().partition(|vmid| vmlist.get(*vmid).is_none_or(|guest| guest.node == node));
    if wanted.only_here {
        external.clear();
    }
    Ok(Selection { local, external })
}

#[cfg(test)]
mod tests;
