//! The directory of hooks: which of its files are called, in which order.

use super::{Hook, HookError};
use crate::host::Host;

/// Ends of names that editors and package managers give to files that are put aside.
const PUT_ASIDE: [&str; 11] =
    ["~", ".bak", ".old", ".orig", ".rej", ".swp", ".disabled", ".dpkg-old", ".dpkg-dist", ".dpkg-new", ".dpkg-tmp"];

/// The hooks of directory `dir`, a path of the node, in the order of their names, byte by byte; and a warning for each
/// file that looks like a hook and cannot be called.
///
/// # Errors
/// When the directory cannot be read.
pub(super) fn list(host: &Host, dir: &str) -> Result<(Vec<Hook>, Vec<String>), HookError> {
    let failed = |source| HookError::Directory { path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(host.path(dir)).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    let (mut hooks, mut warnings) = (Vec::new(), Vec::new());
    for name in names {
        let shown = format!("{}/{}", dir.trim_end_matches('/'), name.to_string_lossy());
        match name.to_str() {
            None => warnings.push(format!("hook '{shown}' is left out: its name is not valid UTF-8")),
            Some(name) if is_put_aside(name) || host.path(&shown).is_dir() => {}
            Some(_) => match Hook::new(host, &shown) {
                Ok(hook) => hooks.push(hook),
                Err(HookError::NotExecutable(_)) => {
                    warnings.push(format!("hook '{shown}' is left out: it is not executable"));
                }
                Err(_) => warnings.push(format!("hook '{shown}' is left out: it is no file")),
            },
        }
    }
    Ok((hooks, warnings))
}

/// Whether a file of this name is no hook, whatever its mode says.
fn is_put_aside(name: &str) -> bool {
    name.starts_with(['.', '#'])
        || name.starts_with("README")
        || PUT_ASIDE.iter().any(|end| name.ends_with(end))
        || [".ucf-", ".rpm"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn names_in_order_and_those_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::with_root(dir.path().to_owned());
        let hooks = host.path("/etc/hooks.d");
        std::fs::create_dir_all(hooks.join("00-directory")).unwrap();
        let mode = |name: &str, mode| {
            std::fs::write(hooks.join(name), "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(hooks.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for name in
            ["9-last", "10-mount.sh", "B", "a", "10-mount.sh~", ".hidden", "a.dpkg-old", "a.bak", "README.md", "#a#"]
        {
            mode(name, 0o755);
        }
        mode("50-notes", 0o644);
        symlink("/nosuch", hooks.join("60-dangling")).unwrap();
        let (found, warnings) = list(&host, "/etc/hooks.d/").unwrap();
        let names: Vec<&str> = found.iter().map(|hook| hook.shown.as_str()).collect();
        assert_eq!(names, ["/etc/hooks.d/10-mount.sh", "/etc/hooks.d/9-last", "/etc/hooks.d/B", "/etc/hooks.d/a"]);
        assert_eq!(
            warnings,
            [
                "hook '/etc/hooks.d/50-notes' is left out: it is not executable",
                "hook '/etc/hooks.d/60-dangling' is left out: it is no file"
            ]
        );
        let error = list(&host, "/etc/nosuch").unwrap_err().to_string();
        assert!(
            error.starts_with("Error: The hook directory '/etc/nosuch' (hooks-dir in /etc/vzkeep.conf)"),
            "{error}"
        );
    }
}
