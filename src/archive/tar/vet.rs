//! Decides about every member before GNU tar may see it: nothing in an archive may reach outside of the directory it is
//! unpacked in. GNU tar has defences of its own; this one does not depend on them.
//!
//! Of what cannot be a directory only hashes are kept, 64 bits with a secret key, so that a million symbolic links cost
//! about 16 MiB and nobody can make two names that look the same here. There is a limit, beyond which an archive is refused.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::{Kind, Member, TarError, components, printable};

/// Symbolic links one archive may have.
const MOST_SYMLINKS: usize = 4_000_000;
/// Other members that are remembered as no directories. Beyond it they are GNU tar's to refuse, which finds no directory.
const MOST_OTHERS: usize = 2_000_000;

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Device nodes.
    pub devices: bool,
}

/// What is known of the members so far.
pub struct Vetting {
    rules: Rules,
    key: RandomState,
    symlinks: HashSet<u64>,
    others: HashSet<u64>,
    most_symlinks: usize,
}

impl Vetting {
    /// For one archive.
    pub fn new(rules: Rules) -> Self {
        let (symlinks, others) = (HashSet::new(), HashSet::new());
        Self { rules, key: RandomState::new(), symlinks, others, most_symlinks: MOST_SYMLINKS }
    }

    /// To be called for every member, in the order of the archive.
    ///
    /// # Errors
    /// With the reason when the member must not be unpacked.
    pub fn check(&mut self, member: &Member) -> Result<(), TarError> {
        self.judge(member).map_err(|why| TarError::Refused {
            name: printable(&member.path),
            offset: member.offset,
            why,
        })
    }

    fn judge(&mut self, member: &Member) -> Result<(), String> {
        match member.kind {
            Kind::Label => return Ok(()),
            Kind::Other(flag) => {
                return Err(format!("its type '{}' is none a backup has", [flag].escape_ascii()));
            }
            // What is below `./dev/` is the node's to make, and restores leave it out.
            Kind::Character | Kind::BlockDevice if !self.rules.devices && !member.path.starts_with(b"./dev/") => {
                return Err("an unprivileged container cannot have device nodes".to_owned());
            }
            _ => {}
        }
        let name = self.place("its name", &member.path)?;
        let Some(name) = name else {
            if member.kind == Kind::Directory {
                return Ok(());
            }
            return Err("it would replace the top directory".to_owned());
        };
        let mut is_symlink = member.kind == Kind::Symlink;
        if member.kind == Kind::HardLink {
            let link = self.place("what it is linked to", &member.link)?;
            let link = link.ok_or("it is linked to the top directory")?;
            // A second name of a symbolic link is one, too.
            is_symlink = self.symlinks.contains(&link);
        }
        if is_symlink {
            self.symlinks.insert(name);
            if self.symlinks.len() > self.most_symlinks {
                return Err(format!("the archive has more than {} symbolic links", self.most_symlinks));
            }
        } else if member.kind == Kind::Directory {
            // It takes the place of a file. A symbolic link stays suspect.
            self.others.remove(&name);
        } else if self.others.len() < MOST_OTHERS {
            self.others.insert(name);
        }
        Ok(())
    }

    /// The hash of a name that stays inside and leads through directories only; none for the top.
    fn place(&self, what: &str, path: &[u8]) -> Result<Option<u64>, String> {
        if path.contains(&0) {
            return Err(format!("{what} has a NUL byte"));
        }
        if path.starts_with(b"/") {
            return Err(format!("{what} '{}' is absolute", printable(path)));
        }
        let mut hasher = self.key.build_hasher();
        let mut place = None;
        for part in components(path) {
            if part == b".." {
                return Err(format!("{what} '{}' has '..' in it", printable(path)));
            }
            if let Some(parent) = place {
                let leads = if self.symlinks.contains(&parent) {
                    "a symbolic link"
                } else if self.others.contains(&parent) {
                    "something that is no directory"
                } else {
                    ""
                };
                if !leads.is_empty() {
                    return Err(format!("{what} '{}' leads through {leads} of the same archive", printable(path)));
                }
            }
            hasher.write(part);
            hasher.write_u8(b'/');
            place = Some(hasher.finish());
        }
        Ok(place)
    }
}

#[cfg(test)]
impl Vetting {
    /// With a lower limit.
    pub(super) fn with_most_symlinks(rules: Rules, most_symlinks: usize) -> Self {
        Self { most_symlinks, ..Self::new(rules) }
    }
}
