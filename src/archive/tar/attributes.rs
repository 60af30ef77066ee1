//! What a member says about its file besides name and content: owner, permissions, time, device, extended attributes.
//!
//! Nothing depends on them but what is shown. One that makes no sense is left out, as GNU tar does when it unpacks.

/// Owner, permissions and so on of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with the bits for set-id and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The access list, as text.
    pub acl: Option<Vec<u8>>,
    /// The access list that new files in a directory get, as text.
    pub default_acl: Option<Vec<u8>>,
}

/// The attributes that extended headers have.
#[derive(Debug, Clone, Default)]
pub(super) struct Said {
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    acl: Option<Vec<u8>>,
    default_acl: Option<Vec<u8>>,
}

impl Said {
    /// Takes a record, if it is one of these.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) {
        let number = || std::str::from_utf8(value).ok()?.parse().ok();
        match key {
            b"uid" => self.uid = number(),
            b"gid" => self.gid = number(),
            b"mtime" => self.mtime = time(value),
            b"SCHILY.acl.access" => self.acl = Some(value.to_vec()),
            b"SCHILY.acl.default" => self.default_acl = Some(value.to_vec()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((decoded(name), value.to_vec()));
                }
            }
        }
    }

    /// What these records change.
    pub(super) fn apply(self, to: &mut Attributes) {
        to.uid = self.uid.unwrap_or(to.uid);
        to.gid = self.gid.unwrap_or(to.gid);
        to.mtime = self.mtime.unwrap_or(to.mtime);
        to.xattrs = self.xattrs;
        to.acl = self.acl;
        to.default_acl = self.default_acl;
    }
}

/// Decimal seconds with a fraction: `-1.25` is a quarter of a second before second -1.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match whole.starts_with('-') && nanos > 0 {
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((seconds, nanos)),
    }
}

/// The name of an attribute, in which GNU tar writes `=` and `%` in hexadecimal.
fn decoded(name: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(name.len()), name);
    while let Some((first, tail)) = rest.split_first() {
        let (byte, left) = match rest {
            [b'%', b'3', b'D', left @ ..] => (b'=', left),
            [b'%', b'2', b'5', left @ ..] => (b'%', left),
            _ => (*first, tail),
        };
        out.push(byte);
        rest = left;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(b"1763802865.123456789"), Some((1_763_802_865, 123_456_789)));
        assert_eq!(
            [time(b"7"), time(b"7.5"), time(b"0.0000000019")],
            [Some((7, 0)), Some((7, 500_000_000)), Some((0, 1))]
        );
        assert_eq!(
            [time(b"-1"), time(b"-1.25"), time(b"-0.5")],
            [Some((-1, 0)), Some((-2, 750_000_000)), Some((-1, 500_000_000))]
        );
        assert_eq!([time(b""), time(b"x"), time(b"1.x"), time(b"99999999999999999999")], [None; 4]);
    }

    #[test]
    fn records() {
        let mut said = Said::default();
        for (key, value) in [
            (&b"uid"[..], &b"100000"[..]),
            (b"gid", b"x"),
            (b"SCHILY.xattr.user.a%3Db%25", b"\0v"),
            (b"SCHILY.acl.access", b"user::rw-"),
        ] {
            said.take(key, value);
        }
        let mut attributes = Attributes { gid: 5, ..Attributes::default() };
        said.apply(&mut attributes);
        assert_eq!((attributes.uid, attributes.gid), (100_000, 5));
        assert_eq!(attributes.xattrs, [(b"user.a=b%".to_vec(), b"\0v".to_vec())]);
        assert_eq!(attributes.acl.as_deref(), Some(&b"user::rw-"[..]));
    }
}
