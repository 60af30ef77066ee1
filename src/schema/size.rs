//! Sizes, rates and durations as the logs and configurations spell them.

const KIB: u64 = 1 << 10;

/// `32G`, `528K`, `1.5T`, `4194304`: a size in a configuration, in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], KIB),
        b'M' => (&text[..text.len() - 1], KIB.pow(2)),
        b'G' => (&text[..text.len() - 1], KIB.pow(3)),
        b'T' => (&text[..text.len() - 1], KIB.pow(4)),
        _ => (text, 1),
    };
    let valid = |c: char| c.is_ascii_digit() || c == '.';
    if !number.starts_with(|c: char| c.is_ascii_digit()) || !number.chars().all(valid) {
        return None;
    }
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(unit),
        Err(_) => {
            number.parse::<f64>().ok().map(|n| n * unit as f64).filter(|n| *n < u64::MAX as f64).map(|n| n as u64)
        }
    }
}

/// The shortest exact form in a configuration: `1G`, `320K`, `1000`.
pub fn print_size(bytes: u64) -> String {
    let mut size = bytes;
    for unit in ["", "K", "M", "G"] {
        if size == 0 || !size.is_multiple_of(KIB) {
            return format!("{size}{unit}");
        }
        size /= KIB;
    }
    format!("{size}T")
}

/// As in `archive file size: 73MB`: whole KB or MB, then GB and TB with two digits.
pub fn archive_size(bytes: u64) -> String {
    let scaled = |power: u32| bytes as f64 / KIB.pow(power) as f64;
    match bytes {
        _ if bytes < KIB.pow(2) => format!("{}KB", bytes / KIB),
        _ if bytes < KIB.pow(3) => format!("{}MB", bytes / KIB.pow(2)),
        _ if bytes < KIB.pow(4) => format!("{:.2}GB", scaled(3)),
        _ => format!("{:.2}TB", scaled(4)),
    }
}

/// As in progress lines, `440.1 MiB` with one digit and `1.12 GiB` with two; plain bytes have none.
pub fn human(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < KIB {
        return format!("{bytes} B");
    }
    let power = bytes.ilog2() / 10;
    let scaled = bytes as f64 / (1u64 << (10 * power)) as f64;
    format!("{scaled:.digits$} {}", UNITS[power as usize - 1])
}

/// Bytes over seconds as `146.7 MiB/s`; less than a second counts as one.
pub fn rate(bytes: u64, seconds: u64) -> String {
    format!("{}/s", human(bytes / seconds.max(1), 1))
}

/// `INFO:  38% (440.1 MiB of 1.1 GiB) in 3s, read: 146.7 MiB/s, write: 17.1 MiB/s`, without the prefix. `read` and
/// `written` are what was moved since the line before, `interval` seconds ago.
pub fn progress_line(done: u64, total: u64, elapsed: u64, read: u64, written: u64, interval: u64) -> String {
    format!(
        "{:3}% ({} of {}) in {elapsed}s, read: {}, write: {}",
        percent(done, total),
        human(done, 1),
        human(total, 1),
        rate(read, interval),
        rate(written, interval)
    )
}

/// `backup is sparse: 1.02 GiB (91%) total zero data`.
pub fn sparse_line(zero: u64, total: u64) -> String {
    format!("backup is sparse: {} ({}%) total zero data", human(zero, 2), percent(zero, total))
}

/// `transferred 1.12 GiB in 9 seconds (128.0 MiB/s)`; `<1 seconds` for less than one.
pub fn transferred_line(total: u64, seconds: u64) -> String {
    let time = if seconds == 0 { "<1".to_owned() } else { seconds.to_string() };
    match seconds {
        0 => format!("transferred {} in {time} seconds", human(total, 2)),
        _ => format!("transferred {} in {time} seconds ({})", human(total, 2), rate(total, seconds)),
    }
}

/// The part of the whole in percent, rounded down; all of nothing is 100.
pub fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 100 } else { u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100) }
}

/// As in `Finished Backup of VM 100 (00:00:12)`.
pub fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn recorded_lines() {
        let total = 1152 * MIB;
        let done = (440.1 * MIB as f64) as u64;
        assert_eq!(
            progress_line(done, total, 3, done, (51.3 * MIB as f64) as u64, 3),
            " 38% (440.1 MiB of 1.1 GiB) in 3s, read: 146.7 MiB/s, write: 17.1 MiB/s"
        );
        assert_eq!(
            progress_line(64 * MIB, 64 * MIB, 0, 64 * MIB, 0, 0),
            "100% (64.0 MiB of 64.0 MiB) in 0s, read: 64.0 MiB/s, write: 0 B/s"
        );
        assert_eq!(rate(3 * 312 * 1024, 3), "312.0 KiB/s");
        assert_eq!(sparse_line(336 * MIB, 384 * MIB), "backup is sparse: 336.00 MiB (87%) total zero data");
        assert_eq!(sparse_line(1024 * MIB, total), "backup is sparse: 1.00 GiB (88%) total zero data");
        assert_eq!(transferred_line(total, 9), "transferred 1.12 GiB in 9 seconds (128.0 MiB/s)");
        assert_eq!(transferred_line(total, 2), "transferred 1.12 GiB in 2 seconds (576.0 MiB/s)");
        assert_eq!(transferred_line(total, 1), "transferred 1.12 GiB in 1 seconds (1.1 GiB/s)");
        assert_eq!(transferred_line(64 * MIB, 0), "transferred 64.00 MiB in <1 seconds");
        assert_eq!(clock(3 * 3600 + 12), "03:00:12");
    }

    #[test]
    fn archive_sizes() {
        for (bytes, text) in [
            (0, "0KB"),
            (13312, "13KB"),
            (MIB - 1, "1023KB"),
            (73 * MIB + 5, "73MB"),
            (1536 * MIB, "1.50GB"),
            (1 << 41, "2.00TB"),
        ] {
            assert_eq!(archive_size(bytes), text);
        }
    }

    #[test]
    fn sizes_of_configurations() {
        for (text, bytes) in [("1G", 1 << 30), ("320K", 320 << 10), ("1000", 1000), ("4T", 4 << 40), ("0", 0)] {
            assert_eq!(parse_size(text), Some(bytes));
            assert_eq!(print_size(bytes), text);
        }
        assert_eq!(parse_size("1.5G"), Some(3 << 29));
        for bad in ["", "G", "1X", "-1", "1e3", ".5", "99999999999999999999T"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        assert_eq!(human(u64::MAX, 1), "16.0 EiB");
    }
}
