//! Archives as nobody's tar makes them, header by header.

/// A member.
pub struct Entry {
    name: String,
    kind: u8,
    link: String,
    device: (u32, u32),
    long: bool,
}

impl Entry {
    fn new(name: &str, kind: u8, link: &str) -> Self {
        Self { name: name.into(), kind, link: link.into(), device: (0, 0), long: false }
    }

    pub fn file(name: &str) -> Self {
        Self::new(name, b'0', "")
    }

    pub fn dir(name: &str) -> Self {
        Self::new(name, b'5', "")
    }

    pub fn symlink(name: &str, to: &str) -> Self {
        Self::new(name, b'2', to)
    }

    pub fn link(name: &str, to: &str) -> Self {
        Self::new(name, b'1', to)
    }

    pub fn device(name: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(name, b'4', "") }
    }

    /// A file whose name is in a header of its own.
    pub fn long(name: &str) -> Self {
        Self { long: true, ..Self::file(name) }
    }
}

/// An archive of a container with this config and these members; every file has the same content.
pub fn archive(config: &str, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    member(&mut out, &Entry::file("./etc/vzdump/pct.conf"), config.as_bytes());
    member(&mut out, &Entry::dir("./"), b"");
    for entry in entries {
        if entry.long {
            let name = format!("{}\0", entry.name);
            member(&mut out, &Entry::new("././@LongLink", b'L', ""), name.as_bytes());
            member(&mut out, &Entry::file("short"), b"evil\n");
        } else {
            member(&mut out, entry, if entry.kind == b'0' { b"evil\n" } else { b"" });
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn member(out: &mut Vec<u8>, entry: &Entry, data: &[u8]) {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    assert!(entry.name.len() <= 100 && entry.link.len() <= 100, "{}", entry.name);
    put(0, entry.name.as_bytes());
    put(100, if entry.kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, entry.link.as_bytes());
    put(257, b"ustar  \0");
    put(329, format!("{:07o}\0", entry.device.0).as_bytes());
    put(337, format!("{:07o}\0", entry.device.1).as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}
