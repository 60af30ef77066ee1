//! Whose is the lock in a guest's config, and may it go? The rule alone, without a look at anything: [`Facts`] in, [`Verdict`]
//! out. A lock goes only when whoever set it is provably gone; in doubt it stays, and the node's own `qm unlock` remains.

use super::conffile::Kind;

/// What is known about a guest's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The guest.
    pub vmid: u32,
    /// VM or container.
    pub kind: Kind,
    /// `lock:` in its config.
    pub lock: Option<String>,
    /// Our own record of work on it.
    pub journal: Journal,
    /// A living backup job that may have set the lock: `task UPID:... (process 4711)`.
    pub runner: Option<String>,
    /// What its QEMU is doing.
    pub qemu: QemuState,
    /// A job that may have set it, and of which only the record is left: `task UPID:... (process 4711)`.
    pub trace: Option<String>,
}

/// Our own record of work on a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Journal {
    /// There is none.
    Empty,
    /// A run of ours works on the guest: `vzdump (process 4711)`.
    Living(String),
    /// This run was killed, and its guardian is undoing what it did.
    Recovering(String),
    /// A run was killed and not everything was undone.
    Left {
        /// `vzdump (process 4711)`.
        by: String,
        /// The locks it notes: `backup`, `create`.
        locks: Vec<String>,
    },
}

/// What the guest's QEMU is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuState {
    /// There is none, or no backup runs in it.
    Quiet,
    /// A backup runs in it: `block job drive-scsi0`.
    Backup(String),
    /// It does not answer.
    Unknown(String),
}

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is locked and nothing is left to undo.
    Free,
    /// Who left it is gone, so it may go.
    Stale {
        /// Who left it, as the rest of `left behind by ...`.
        by: String,
    },
    /// It stays.
    Refused {
        /// Why.
        why: String,
        /// What to do instead.
        advice: String,
    },
}

/// Judges a lock.
pub fn judge(facts: &Facts) -> Verdict {
    let vmid = facts.vmid;
    let tool = if facts.kind == Kind::Container { "pct" } else { "qm" };
    let refuse = |why: String, advice: String| Verdict::Refused { why, advice };
    match &facts.journal {
        Journal::Living(by) => {
            return refuse(
                format!("{by} is working on it"),
                "wait for it to end, or end it by a TERM signal ('vzdump --stop' for a backup)".into(),
            );
        }
        Journal::Recovering(by) => {
            return refuse(
                format!("{by} was killed, and its guardian is undoing right now what it left"),
                format!("wait a moment; {} says what it did", facts.kind.log_path(vmid)),
            );
        }
        Journal::Empty | Journal::Left { .. } => {}
    }
    let left = match &facts.journal {
        Journal::Left { by, locks } => Some((by, locks)),
        _ => None,
    };
    let gone = |by: &str| format!("{by}, which was killed");
    let Some(lock) = &facts.lock else {
        return left.map_or(Verdict::Free, |(by, _)| Verdict::Stale { by: gone(by) });
    };
    let ours = left.filter(|(_, locks)| locks.contains(lock));
    if lock != "backup" {
        return match ours {
            Some((by, _)) => Verdict::Stale { by: gone(by) },
            None => refuse(
                format!("its lock is '{lock}', which no backup sets"),
                format!("find out who works on it; '{tool} unlock {vmid}' removes any lock, at your own risk"),
            ),
        };
    }
    if let Some(runner) = &facts.runner {
        return refuse(
            format!("a backup job is alive that may have set the lock: {runner}"),
            "wait for it to end, or end it by 'vzdump --stop'".into(),
        );
    }
    match &facts.qemu {
        QemuState::Backup(what) => {
            return refuse(
                format!("a backup still runs inside its QEMU ({what})"),
                format!("wait for it to end, or cancel it in the monitor ('qm monitor {vmid}')"),
            );
        }
        QemuState::Unknown(why) => {
            return refuse(
                format!("whether a backup still runs inside its QEMU cannot be told: {why}"),
                format!("try again; '{tool} unlock {vmid}' removes any lock, at your own risk"),
            );
        }
        QemuState::Quiet => {}
    }
    let by = match (left, &facts.trace) {
        (Some((by, _)), _) => gone(by),
        (None, Some(task)) => format!("{task}, which is gone without an end"),
        (None, None) => "a backup job that is gone: none that could have set it is alive on this node".into(),
    };
    Verdict::Stale { by }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(lock: &str, journal: &str, runner: bool, qemu: &str) -> Facts {
        let by = || "vzdump (process 4711)".to_owned();
        Facts {
            vmid: 100,
            kind: Kind::Vm,
            lock: (!lock.is_empty()).then(|| lock.to_owned()),
            journal: match journal {
                "" => Journal::Empty,
                "lives" => Journal::Living(by()),
                "recovers" => Journal::Recovering(by()),
                locks => {
                    let locks = locks.strip_prefix("left").unwrap_or_default().split_whitespace();
                    Journal::Left { by: by(), locks: locks.map(str::to_owned).collect() }
                }
            },
            runner: runner.then(|| "task UPID (process 5)".to_owned()),
            qemu: match qemu {
                "backup" => QemuState::Backup("block job drive-scsi0".into()),
                "silent" => QemuState::Unknown("no answer".into()),
                _ => QemuState::Quiet,
            },
            trace: None,
        }
    }

    #[test]
    fn every_lock_has_its_verdict() {
        // lock, journal, a living job, QEMU -> free, stale, or a word of the reason for which it stays
        for (lock, journal, runner, qemu, wanted) in [
            ("", "", false, "", "free"),
            ("", "", true, "backup", "free"),
            ("", "left", false, "", "stale"),
            ("", "lives", false, "", "is working on it"),
            ("", "recovers", false, "", "guardian"),
            ("backup", "", false, "", "stale"),
            ("backup", "left backup", false, "", "stale"),
            ("backup", "left", false, "", "stale"),
            ("backup", "lives", false, "", "is working on it"),
            ("backup", "recovers", false, "", "guardian"),
            ("backup", "", true, "", "may have set the lock"),
            ("backup", "left backup", true, "", "may have set the lock"),
            ("backup", "", false, "backup", "runs inside its QEMU"),
            ("backup", "left backup", false, "backup", "runs inside its QEMU"),
            ("backup", "", false, "silent", "cannot be told"),
            ("migrate", "", false, "", "which no backup sets"),
            ("migrate", "left backup", false, "", "which no backup sets"),
            ("create", "", false, "", "which no backup sets"),
            ("create", "left create", false, "", "stale"),
            ("create", "left create", true, "", "stale"),
            ("create", "lives", false, "", "is working on it"),
            ("suspended", "", true, "backup", "which no backup sets"),
        ] {
            let verdict = judge(&facts(lock, journal, runner, qemu));
            let is = match &verdict {
                Verdict::Free => "free",
                Verdict::Stale { .. } => "stale",
                Verdict::Refused { why, .. } => why.as_str(),
            };
            assert!(is.contains(wanted), "{lock}/{journal}/{runner}/{qemu}: {verdict:?}, not {wanted}");
        }
    }

    #[test]
    fn the_best_known_name_of_who_left_it() {
        let mut facts = facts("backup", "", false, "");
        let by = |facts: &Facts| match judge(facts) {
            Verdict::Stale { by } => by,
            other => panic!("{other:?}"),
        };
        assert!(by(&facts).starts_with("a backup job that is gone"));
        facts.trace = Some("task UPID (process 7)".into());
        assert_eq!(by(&facts), "task UPID (process 7), which is gone without an end");
        facts.journal = Journal::Left { by: "vzdump (process 4711)".into(), locks: vec!["backup".into()] };
        assert_eq!(by(&facts), "vzdump (process 4711), which was killed");
    }
}
