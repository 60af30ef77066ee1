//! Access lists: tar has them as text, the kernel as numbers. POSIX.1e draft 17, and `linux/posix_acl_xattr.h`.

use nix::unistd::{Group, User};

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The number of entries that are for nobody in particular.
const NOBODY: u32 = u32::MAX;

/// The value of `system.posix_acl_access` or `_default` for entries such as `user:1000:rw-`, one a line or behind commas.
/// `None` when the text is none, or names somebody this machine does not know.
pub(super) fn encoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let entries = text.split(['\n', ',']).map(|entry| entry.split('#').next().unwrap_or_default().trim());
    let mut found = entries.filter(|entry| !entry.is_empty()).map(entry).collect::<Option<Vec<_>>>()?;
    // The kernel wants them in this order.
    found.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, rights) in found {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&rights.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(value)
}

/// Tag, number and rights of an entry. A number behind the rights counts more than the name, as other programs write it.
fn entry(text: &str) -> Option<(u16, u32, u16)> {
    let fields: Vec<_> = text.split(':').map(str::trim).collect();
    let (kind, name, rights) = match fields.as_slice() {
        [kind @ ("mask" | "m" | "other" | "o"), rights] => (*kind, "", *rights),
        [kind, name, rights, ..] => (*kind, *name, *rights),
        _ => return None,
    };
    let number = || fields.get(3).copied().unwrap_or(name).parse::<u32>().ok();
    let (tag, id) = match kind {
        "user" | "u" if name.is_empty() => (USER_OBJ, NOBODY),
        "user" | "u" => {
            (USER, number().or_else(|| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))?)
        }
        "group" | "g" if name.is_empty() => (GROUP_OBJ, NOBODY),
        "group" | "g" => {
            (GROUP, number().or_else(|| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()))?)
        }
        "mask" | "m" => (MASK, NOBODY),
        "other" | "o" => (OTHER, NOBODY),
        _ => return None,
    };
    let rights = rights.chars().try_fold(0, |rights, letter| match letter {
        'r' => Some(rights | 4),
        'w' => Some(rights | 2),
        'x' => Some(rights | 1),
        '-' => Some(rights),
        _ => None,
    })?;
    Some((tag, id, rights))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_numbers() {
        let wanted = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 0xe8, 3, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 4, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        let lines = b"user::rw-\nuser:1000:r--\t#effective:r--\ngroup::r--\nmask::r--\nother::---\n";
        assert_eq!(encoded(lines).unwrap(), wanted);
        assert_eq!(encoded(b"u::rw,user:joe:r:1000,m:r--,g::r,o:---").unwrap(), wanted);
        assert_eq!(encoded(b"user:root:rwx").unwrap()[4..], [2, 0, 7, 0, 0, 0, 0, 0]);
        for bad in [&b"user"[..], b"user:no such user here:r", b"x::r", b"user::q", b"\xff"] {
            assert_eq!(encoded(bad), None, "{bad:?}");
        }
    }
}
