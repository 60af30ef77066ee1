//! `pct restore`: its options, typed.

use std::collections::BTreeMap;

use super::{Kind, Params, UsageError, Vmid, parse, tables::PCT_RESTORE};

/// Options that say how to restore. All others are settings of the container.
const HOW: [&str; 13] = [
    "vmid",
    "ostemplate",
    "bwlimit",
    "force",
    "ignore-unpack-errors",
    "mp[n]",
    "pool",
    "rootfs",
    "start",
    "storage",
    "unique",
    "unprivileged",
    "description",
];

/// The options of one `pct restore`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRestoreOptions {
    /// A path, a volume id, or `-` for standard input.
    pub archive: String,
    /// The container to make.
    pub vmid: Vmid,
    /// Where the volumes go; by default `local`.
    pub storage: Option<String>,
    /// Another root than the backup's.
    pub rootfs: Option<String>,
    /// Other mount points than the backup's, by number.
    pub mount_points: BTreeMap<u32, String>,
    /// Whether the container's root is not the node's; by default as it was.
    pub unprivileged: Option<bool>,
    /// Keep what could be unpacked.
    pub ignore_unpack_errors: bool,
    /// Replace a container that exists.
    pub force: bool,
    /// New MAC addresses.
    pub unique: bool,
    /// Limit in bytes a second; zero lifts those of the storages.
    pub bwlimit: Option<u64>,
    /// Start the container afterwards.
    pub start: bool,
    /// What it is to be called in its notes.
    pub description: Option<String>,
    /// Settings that stand above those of the backup: `memory`, `net0`, ...
    pub settings: BTreeMap<String, String>,
}

impl ContainerRestoreOptions {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// The text for standard error; the exit code is 255. An option that cannot be honoured is refused, not ignored.
    pub fn parse(args: &[String]) -> Result<Self, UsageError> {
        let params = parse(&PCT_RESTORE, &numbers_to_values(args))?;
        let refuse = |name: &str, reason: &str| Err(UsageError::param(&PCT_RESTORE, name, reason));
        if params.has("pool") {
            let instead =
                "not supported; add the container to its pool with 'pvesh set /pools/<pool>' after the restore";
            return refuse("pool", instead);
        }
        if let Some(name) = params.text("hostname").filter(|name| !is_dns_name(name)) {
            return refuse(
                "hostname",
                &format!("invalid format - value '{name}' does not look like a valid DNS name\n"),
            );
        }
        Self::from_params(&params).map_err(|(name, reason)| UsageError::param(&PCT_RESTORE, &name, &reason))
    }

    fn from_params(params: &Params) -> Result<Self, (String, String)> {
        let text = |name: &str| params.text(name).map(str::to_owned);
        // KiB/s, fractions allowed; a fraction of a byte is still a limit.
        let bwlimit =
            params.text("bwlimit").and_then(|kib| kib.parse::<f64>().ok()).map(|kib| (kib * 1024.0).ceil() as u64);
        let mut mount_points = BTreeMap::new();
        for value in params.items(&PCT_RESTORE, "mp[n]") {
            let (number, value) = numbered("mp", 256, &value)?;
            mount_points.insert(number, value);
        }
        let mut settings = BTreeMap::new();
        for opt in PCT_RESTORE.options.iter().filter(|opt| !HOW.contains(&opt.name) && params.has(opt.name)) {
            match (opt.name.strip_suffix("[n]"), opt.kind) {
                (Some(name), _) => {
                    for value in params.items(&PCT_RESTORE, opt.name) {
                        let (number, value) = numbered(name, if name == "net" { 32 } else { 256 }, &value)?;
                        settings.insert(format!("{name}{number}"), value);
                    }
                }
                (None, Kind::Bool) => {
                    settings.insert(opt.name.to_owned(), u8::from(params.flag(opt.name)).to_string());
                }
                (None, _) => settings.extend(text(opt.name).map(|value| (opt.name.to_owned(), value))),
            }
        }
        let vmid = params.text("vmid").unwrap_or_default().parse();
        Ok(Self {
            archive: text("ostemplate").unwrap_or_default(),
            vmid: vmid.map_err(|e| ("vmid".to_owned(), format!("invalid format - {e}\n")))?,
            storage: text("storage"),
            rootfs: text("rootfs"),
            mount_points,
            unprivileged: params.has("unprivileged").then(|| params.flag("unprivileged")),
            ignore_unpack_errors: params.flag("ignore-unpack-errors"),
            force: params.flag("force"),
            unique: params.flag("unique"),
            bwlimit,
            start: params.flag("start"),
            description: text("description"),
            settings,
        })
    }
}

/// `--mp3 value` as `--mp[n] 3=value`: the table has one entry for all numbers.
fn numbers_to_values(args: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            out.push(arg.clone());
            out.extend(args.cloned());
            break;
        }
        let text = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or_default();
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let letters = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_ascii_lowercase();
        let number = &name[letters.len()..];
        let known = PCT_RESTORE.options.iter().any(|opt| opt.name.strip_suffix("[n]") == Some(letters.as_str()));
        if !known || number.is_empty() {
            out.push(arg.clone());
            continue;
        }
        out.push(format!("--{letters}[n]"));
        out.extend(attached.or_else(|| args.next().map(String::as_str)).map(|value| format!("{number}={value}")));
    }
    out
}

/// The number and the value of `3=value`.
fn numbered(name: &str, most: u32, value: &str) -> Result<(u32, String), (String, String)> {
    let parts = value.split_once('=').and_then(|(number, value)| Some((number.parse::<u32>().ok()?, value)));
    match parts {
        Some((number, value)) if number < most => Ok((number, value.to_owned())),
        _ => {
            let reason = format!("give it with a number below {most}: '--{name}0 ...'");
            Err((format!("{name}[n]"), reason))
        }
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<ContainerRestoreOptions, String> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        ContainerRestoreOptions::parse(&args).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_settings() {
        let given = options(&[
            "201",
            "bk:backup/x.tar.zst",
            "--mp0",
            "local:4,mp=/data",
            "-MP12=thin:8,mp=/b",
            "--net0",
            "name=eth0",
            "--memory",
            "256",
            "--onboot",
            "--unprivileged",
            "0",
            "--tags=a;b",
            "--bwlimit",
            "0.5",
            "--hostname",
            "ct.b",
        ])
        .unwrap();
        assert_eq!((given.vmid.get(), given.archive.as_str(), given.storage), (201, "bk:backup/x.tar.zst", None));
        let points: Vec<_> = given.mount_points.iter().map(|(n, value)| format!("{n} {value}")).collect();
        assert_eq!(points, ["0 local:4,mp=/data", "12 thin:8,mp=/b"]);
        let settings: Vec<_> = given.settings.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        assert_eq!(settings, ["hostname: ct.b", "memory: 256", "net0: name=eth0", "onboot: 1", "tags: a;b"]);
        assert_eq!((given.unprivileged, given.bwlimit, given.start), (Some(false), Some(512), false));
    }

    #[test]
    fn what_is_refused() {
        const USAGE: &str = "pct restore <vmid> <ostemplate> [OPTIONS]\n";
        for (args, said) in [
            (&["201"][..], "400 not enough arguments\n"),
            (
                &["201", "x", "--pool", "p"],
                "400 Parameter verification failed.\npool: not supported; add the container",
            ),
            (&["201", "x", "--mp", "a"], "mp[n]: give it with a number below 256: '--mp0 ...'"),
            (&["201", "x", "--mp256", "a"], "mp[n]: give it with a number below 256"),
            (&["201", "x", "--net32", "a"], "net[n]: give it with a number below 32"),
            (&["201", "x", "--mp1"], "Option mp[n] requires an argument\n"),
            (&["201", "x", "--memory", "1"], "memory: value must have a minimum value of 16\n"),
            (&["201", "x", "--hostname", "a_b"], "hostname: invalid format - value 'a_b' does not look like"),
            (&["2", "x"], "vmid: invalid format - "),
        ] {
            let error = options(args).unwrap_err();
            assert!(error.contains(said) && error.ends_with(USAGE), "{args:?}: {error}");
        }
    }
}
