//! A container's tree, read by the programs the original uses, with its words: `tar` makes the archive's stream, `rsync` the copy
//! of a running container. What they complain about is kept, so that a failure names the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use regex::Regex;

use super::complaints::verdict;
use super::mounts::Room;
use crate::config::IdMap;
use crate::host::child::{self, Ended};
use crate::host::{Cancel, Host, sys};

/// What is left out in every container unless `stdexcludes` is off: files that nobody misses.
const STANDARD: [&str; 3] = ["/tmp/?*", "/var/tmp/?*", "/var/run/?*.pid"];
/// The original's options of `tar` for archives and for restores, of which each keeps something: holes, owners, ACLs,
/// attributes, capabilities.
pub const KEEPING: [&str; 9] = [
    "--totals",
    "--one-file-system",
    "-p",
    "--sparse",
    "--numeric-owner",
    "--acls",
    "--xattrs",
    "--xattrs-include=user.*",
    "--xattrs-include=security.capability",
];
/// What `tar` is not to complain about.
pub const QUIET: [&str; 2] = ["--warning=no-file-ignored", "--warning=no-xattr-write"];
/// Behind the original's words: the sockets that it leaves out are named.
const SOCKETS: &str = "--warning=file-ignored";

/// A tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The program cannot be started.
    #[error("'{program}' cannot be started: {source}")]
    Start {
        /// `tar`, `rsync`.
        program: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It failed.
    #[error("command '{program}' failed: {how}: {said}")]
    Failed {
        /// `tar`, `rsync`.
        program: &'static str,
        /// `exit code 1`.
        how: String,
        /// What it complained about, the files by name.
        said: String,
    },
    /// The container stood still for it, and it took too long.
    #[error(
        "'{program}' did not end within {seconds} seconds while the container stood still: raise 'stopwait', use mode 'stop' or storages with snapshots"
    )]
    Late {
        /// `rsync`.
        program: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The job was told to stop meanwhile.
    #[error("interrupted by signal")]
    Interrupted,
}

/// Patterns of what is left out: those given first, then the usual ones.
#[derive(Debug, Clone, Default)]
pub struct Excludes(Vec<String>);

impl Excludes {
    /// The patterns of `--exclude-path` and, if wanted, the standard ones.
    pub fn new(given: &[String], standard: bool) -> Self {
        let standard = STANDARD.iter().filter(|_| standard).map(|pattern| (*pattern).to_owned());
        Self(given.iter().filter(|pattern| !pattern.is_empty()).cloned().chain(standard).collect())
    }

    /// Patterns that match nothing, because they end with a slash.
    pub fn useless(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|pattern| pattern.ends_with('/'))
    }

    /// Those that are matched from the container's root on, or at any place.
    fn anchored(&self, wanted: bool) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(move |pattern| pattern.starts_with('/') == wanted)
    }
}

/// What `tar` packs.
#[derive(Debug, Clone)]
pub struct Tar<'a> {
    /// Where `etc/vzdump/pct.conf` and `etc/vzdump/pct.fw` are.
    pub config: &'a Path,
    /// Where the container's tree is.
    pub tree: &'a Path,
    /// What of the tree: `.`, or the mount points, the root first.
    pub mount_points: Vec<&'a str>,
    /// What is left out of it.
    pub excludes: &'a Excludes,
    /// How the container's ids are the node's.
    pub id_map: &'a [IdMap],
}

impl Tar<'_> {
    /// The words behind `tar`.
    pub fn words(&self) -> Vec<OsString> {
        // Two of them stand twice, as in the original's words.
        let first = ["cpf", "-"].iter().chain(&KEEPING).chain(&QUIET).chain(&["--one-file-system", QUIET[0]]);
        let mut words: Vec<OsString> = first.chain(&[SOCKETS]).map(OsString::from).collect();
        let directory = |path: &Path| {
            let mut word = OsString::from("--directory=");
            word.push(path);
            word
        };
        words.push(directory(self.config));
        words.extend(["./etc/vzdump/pct.conf", "./etc/vzdump/pct.fw"].map(OsString::from));
        words.push(directory(self.tree));
        words.extend(["--no-anchored", "--exclude=lost+found"].map(OsString::from));
        words.extend(self.excludes.anchored(false).map(|pattern| format!("--exclude={pattern}").into()));
        words.push("--anchored".into());
        words.extend(self.excludes.anchored(true).map(|pattern| format!("--exclude=.{pattern}").into()));
        words.extend(
            self.mount_points.iter().map(|mp| OsString::from(if *mp == "." { ".".into() } else { format!(".{mp}") })),
        );
        words
    }

    /// The command, run as the container's root where that is not the node's. Its output is piped.
    pub fn command(&self, host: &Host) -> Command {
        let mut command = if self.id_map.is_empty() {
            host.command("tar")
        } else {
            let mut command = host.command("lxc-usernsexec");
            for map in self.id_map {
                command.args(["-m", &map.to_string()]);
            }
            // It forks: what it started would outlive it, with the volumes mounted.
            command.args(["--", "setpriv", "--pdeathsig", "KILL", "tar"]);
            command
        };
        // Its complaints are read by people and by us.
        command.args(self.words()).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A copy of a running container's tree.
#[derive(Debug)]
pub struct Sync<'a> {
    /// Where the container's root is seen.
    pub from: PathBuf,
    /// The room in which it is seen there; without, everybody does.
    pub room: Option<&'a Room>,
    /// Where the copy is.
    pub to: &'a Path,
    /// The mount points that are copied, the root first.
    pub mount_points: Vec<&'a str>,
    /// Those that are not.
    pub not: Vec<&'a str>,
    /// What is left out.
    pub excludes: &'a Excludes,
    /// Whether ACLs and extended attributes are copied.
    pub attributes: bool,
    /// Most KiB a second; zero is no limit.
    pub bwlimit: u64,
}

impl Sync<'_> {
    /// The words behind `rsync`. The first copy leaves holes; the second changes what is there in its place, and only what changed.
    pub fn words(&self, first: bool) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["--stats".into(), "-h".into()];
        if self.attributes {
            words.extend(["-X", "-A"].map(OsString::from));
        }
        words.extend(["--numeric-ids", "-aH", "--delete", "--no-whole-file"].map(OsString::from));
        words.push(if first { "--sparse" } else { "--inplace" }.into());
        // Not the original's: by whole seconds a file that is written twice in one, at the same size, would look unchanged.
        words.push("--modify-window=-1".into());
        words.extend(["--one-file-system", "--relative"].map(OsString::from));
        if self.bwlimit > 0 {
            words.push(format!("--bwlimit={}", self.bwlimit).into());
        }
        words.extend(self.excludes.0.iter().map(|pattern| format!("--exclude={pattern}").into()));
        words.extend(self.not.iter().map(|mp| format!("--exclude={}", literal(mp)).into()));
        for mp in &self.mount_points {
            let mut source = self.from.clone().into_os_string();
            source.push(format!("/.{mp}"));
            words.push(source);
        }
        words.push(self.to.into());
        words
    }

    /// Copies; how much was transferred, in rsync's words. What it complained about goes to `said`: the container may stand
    /// still meanwhile, and must not wait for a terminal.
    ///
    /// # Errors
    /// When it fails, takes longer than `most`, or is to stop.
    pub fn run(
        &self,
        host: &Host,
        first: bool,
        most: Duration,
        cancel: &Cancel,
        said: &mut Vec<String>,
    ) -> Result<String, TreeError> {
        const PROGRAM: &str = "rsync";
        let mut command = host.command(PROGRAM);
        command.args(self.words(first)).env("LC_ALL", "C");
        let ended = match self.room {
            Some(room) => room.finish(command, most, cancel),
            None => {
                sys::end_with_thread(&mut command);
                child::run(&mut command, None, most, cancel)
            }
        };
        let output = match ended.map_err(|source| TreeError::Start { program: PROGRAM, source })? {
            Ended::Exited(output) => output,
            Ended::Late(limit) => return Err(TreeError::Late { program: PROGRAM, seconds: limit.as_secs() }),
            Ended::Cancelled => return Err(TreeError::Interrupted),
        };
        said.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
        // In a running container files come and go. What counts is the second copy, while it stands still.
        let passing = first && matches!(output.status.code(), Some(23 | 24));
        if !passing {
            verdict(PROGRAM, output.status, said)?;
        }
        let stats = String::from_utf8_lossy(&output.stdout);
        let transferred = Regex::new("(?m)^Total transferred file size: (.+)$").ok();
        let transferred = transferred.and_then(|words| Some(words.captures(&stats)?[1].trim().to_owned()));
        Ok(transferred.unwrap_or_else(|| "0 bytes".to_owned()))
    }
}

/// A path that rsync takes for itself, whatever characters it has.
fn literal(path: &str) -> String {
    // Without a wildcard in it, a backslash stands for itself.
    if !path.contains(['*', '?', '[']) {
        return path.to_owned();
    }
    let escaped = path.chars().map(|c| if "*?[\\".contains(c) { format!("\\{c}") } else { c.to_string() });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: &[OsString]) -> Vec<&str> {
        words.iter().map(|word| word.to_str().unwrap()).collect()
    }

    /// As recorded in `golden/exec/ct-stopped-zstd.txt`, but for the word about sockets.
    #[test]
    fn the_words_of_the_original() {
        let given = ["/home/u/*".to_owned(), "foo".to_owned(), String::new()];
        let excludes = Excludes::new(&given, true);
        let tar = Tar {
            config: Path::new("/mnt/bk/dump/x.tmp"),
            tree: Path::new("/mnt/vzsnap0"),
            mount_points: vec!["/", "/data"],
            excludes: &excludes,
            id_map: &[],
        };
        let words = tar.words();
        assert_eq!(
            texts(&words).join(" "),
            "cpf - --totals --one-file-system -p --sparse --numeric-owner --acls --xattrs --xattrs-include=user.* \
             --xattrs-include=security.capability --warning=no-file-ignored --warning=no-xattr-write --one-file-system \
             --warning=no-file-ignored --warning=file-ignored --directory=/mnt/bk/dump/x.tmp ./etc/vzdump/pct.conf ./etc/vzdump/pct.fw \
             --directory=/mnt/vzsnap0 --no-anchored --exclude=lost+found --exclude=foo --anchored --exclude=./home/u/* \
             --exclude=./tmp/?* --exclude=./var/tmp/?* --exclude=./var/run/?*.pid ./ ./data"
        );
        let copied = Tar { mount_points: vec!["."], excludes: &Excludes::new(&[], false), ..tar.clone() };
        assert!(texts(&copied.words()).ends_with(&["--no-anchored", "--exclude=lost+found", "--anchored", "."]));
        let map = crate::config::ContainerConfig::parse(b"unprivileged: 1\n").id_map().unwrap();
        let command = Tar { id_map: &map, ..tar }.command(&Host::with_root("/".into()));
        let line: Vec<_> = command.get_args().take(10).map(|word| word.to_str().unwrap()).collect();
        assert_eq!(command.get_program(), "lxc-usernsexec");
        assert_eq!(line.join(" "), "-m u:0:100000:65536 -m g:0:100000:65536 -- setpriv --pdeathsig KILL tar cpf");
        assert_eq!(Excludes::new(&["/a/".into(), "b".into()], true).useless().collect::<Vec<_>>(), ["/a/"]);
    }

    #[test]
    fn the_words_of_both_copies() {
        let excludes = Excludes::new(&["foo".into()], true);
        let sync = Sync {
            from: "/proc/7/root".into(),
            room: None,
            to: Path::new("/x.tmp"),
            mount_points: vec!["/", "/data"],
            not: vec!["/no", "/n[o]"],
            excludes: &excludes,
            attributes: true,
            bwlimit: 0,
        };
        assert_eq!(
            texts(&sync.words(true)).join(" "),
            "--stats -h -X -A --numeric-ids -aH --delete --no-whole-file --sparse --modify-window=-1 --one-file-system --relative \
             --exclude=foo --exclude=/tmp/?* --exclude=/var/tmp/?* --exclude=/var/run/?*.pid --exclude=/no \
             --exclude=/n\\[o] /proc/7/root/./ /proc/7/root/./data /x.tmp"
        );
        let poor = Sync { attributes: false, bwlimit: 5, ..sync };
        assert!(texts(&poor.words(false)).join(" ").starts_with(
            "--stats -h --numeric-ids -aH --delete --no-whole-file --inplace --modify-window=-1 --one-file-system --relative --bwlimit=5"
        ));
    }
}
