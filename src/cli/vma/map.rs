//! What the caller of `vma extract -r` writes into the fifo: for every disk a line that says where it goes.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};

/// The longest line, as the stock program has it.
const LONGEST: u64 = 8191;

/// Where a disk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nowhere.
    Skip,
    /// To what is there already.
    To(Place),
}

/// A file or block device, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) format: Option<String>,
    /// Bytes a second; 0 is no limit.
    pub(super) bps: u64,
    /// Disks of the same group share their limit.
    pub(super) group: Option<String>,
    pub(super) cache: Option<String>,
    /// It may hold anything, so that zeros have to be written, too.
    pub(super) write_zeroes: bool,
}

/// The words `cache=` may have.
pub(super) const CACHE_MODES: [&str; 6] = ["none", "off", "directsync", "writeback", "unsafe", "writethrough"];

/// Reads to the line `done`, to an empty one, or to the end.
pub(super) fn read(input: &mut dyn BufRead) -> Result<BTreeMap<String, Mapping>, String> {
    let mut map = BTreeMap::new();
    loop {
        let mut line = Vec::new();
        input.take(LONGEST).read_until(b'\n', &mut line).map_err(|e| format!("read map failed - {e}"))?;
        let ended = line.last() == Some(&b'\n');
        let line = String::from_utf8(line).map_err(|e| format!("read map failed - not UTF-8: {:?}", e.as_bytes()))?;
        if line.len() as u64 == LONGEST && !ended {
            return Err(format!("read map failed - a line is longer than {LONGEST} bytes"));
        }
        let line = line.trim_end_matches('\n');
        if line.is_empty() || (line == "done" && ended) {
            return Ok(map);
        }
        let (name, mapping) = parse(line)?;
        map.insert(name, mapping);
    }
}

fn parse(line: &str) -> Result<(String, Mapping), String> {
    if let Some(rest) = line.strip_prefix("skip") {
        let name = rest.strip_prefix('=').filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("read map failed - option 'skip' has no value ('{line}')"))?;
        return Ok((name.to_owned(), Mapping::Skip));
    }
    let (mut format, mut bps, mut group, mut cache) = (None, None, None, None);
    let mut rest = line;
    let mut options = [
        ("format", &mut format),
        ("throttling.bps", &mut bps),
        ("throttling.group", &mut group),
        ("cache", &mut cache),
    ];
    'options: loop {
        for (name, value) in &mut options {
            let Some(after) = rest.strip_prefix(*name).and_then(|rest| rest.strip_prefix('=')) else { continue };
            if value.is_some() {
                return Err(format!("read map failed - duplicate value for option '{name}'"));
            }
            let (given, after) = after
                .split_once(':')
                .ok_or_else(|| format!("read map failed - option '{name}' not terminated ('{line}')"))?;
            **value = Some(given.to_owned());
            rest = after;
            continue 'options;
        }
        break;
    }
    let write_zeroes = match rest.get(..2) {
        Some("0:") => false,
        Some("1:") => true,
        _ => return Err(format!("read map failed - parse error ('{line}')")),
    };
    let place = rest[2..].split_once('=');
    let (name, path) = place.ok_or_else(|| format!("read map failed - no dev name specified ('{line}')"))?;
    if let Some(mode) = cache.as_deref().filter(|mode| !CACHE_MODES.contains(mode)) {
        return Err(format!("invalid cache option: {mode}"));
    }
    let bps = bps.map_or(Ok(0), |text| number(&text))?;
    let place = Place { path: path.to_owned(), format, bps, group, cache, write_zeroes };
    Ok((name.to_owned(), Mapping::To(place)))
}

/// As strtoull(3) with base 0.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match (text.strip_prefix("0x"), text.strip_prefix('0')) {
        (Some(hex), _) => u64::from_str_radix(hex, 16),
        (_, Some(octal)) if !octal.is_empty() => u64::from_str_radix(octal, 8),
        _ => text.parse(),
    };
    parsed.map_err(|_| format!("read map failed - not a number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_the_node_writes_them() {
        let text = "format=raw:0:drive-scsi0=/dev/pve/vm-100-disk-0\n\
                    throttling.bps=1048576:throttling.group=local:format=qcow2:1:drive-virtio0=/a=b:c\n\
                    skip=drive-efidisk0\n1:drive-ide0=/x\ndone\nnever read";
        let map = read(&mut text.as_bytes()).unwrap();
        let place = |path: &str, format: Option<&str>, write_zeroes| Place {
            path: path.into(),
            format: format.map(str::to_owned),
            write_zeroes,
            ..Place::default()
        };
        assert_eq!(map["drive-scsi0"], Mapping::To(place("/dev/pve/vm-100-disk-0", Some("raw"), false)));
        let slow = Place { bps: 1 << 20, group: Some("local".into()), ..place("/a=b:c", Some("qcow2"), true) };
        assert_eq!(map["drive-virtio0"], Mapping::To(slow));
        assert_eq!((&map["drive-efidisk0"], map.len()), (&Mapping::Skip, 4));
        assert_eq!(read(&mut "0:a=b\n\n0:c=d\n".as_bytes()).unwrap().len(), 1);
        for (line, said) in [
            ("nonsense", "parse error ('nonsense')"),
            ("0:nothing", "no dev name specified ('0:nothing')"),
            ("skip=", "option 'skip' has no value ('skip=')"),
            ("format=raw", "option 'format' not terminated ('format=raw')"),
            ("format=raw:format=raw:0:a=b", "duplicate value for option 'format'"),
            ("throttling.bps=1k:0:a=b", "not a number: 1k"),
            ("cache=maybe:0:a=b", "invalid cache option: maybe"),
            (&"x".repeat(9000), "longer than 8191 bytes"),
        ] {
            let error = read(&mut line.as_bytes()).unwrap_err();
            assert!(error.ends_with(said), "{error}");
        }
        assert_eq!(["0x10", "010", "10", "0"].map(|n| number(n).unwrap()), [16, 8, 10, 0]);
    }
}
