//! `vzkeep verify`: reads archives to their last byte and says what is damaged.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::place::place_of_archive;
use super::shelf::shelves;
use super::{FAILED, complain, say, sentence};
use crate::host::{Cancel, Host};
use crate::schema::Vmid;
use crate::schema::size::{human, rate};
use crate::storage::{Verdict, changed, record, verdicts};
use crate::transfer::{TransferError, Verified, VerifyProgress, verify};

/// The exit code when something is damaged.
const DAMAGED: u8 = 1;
/// Seconds of a day.
const DAY: i64 = 86400;
/// How often progress is shown on a terminal.
const SHOWN: Duration = Duration::from_millis(500);

/// Which archives to verify, and how.
#[derive(Debug, Args)]
pub struct Verify {
    /// An archive (a path or a volume such as local:backup/<name>), a guest's number, or a directory with archives
    #[arg(required_unless_present = "all")]
    what: Option<String>,
    /// All archives of all storages of this node that keep backups
    #[arg(long, conflicts_with = "what")]
    all: bool,
    /// Only archives on this storage
    #[arg(long)]
    storage: Option<String>,
    /// Write down what it came to, for 'vzkeep list'; in a hidden file beside the archives
    #[arg(long)]
    record: bool,
    /// Leave out archives that were found good less than so many days ago, by what was written down; with --record this goes on
    /// where an earlier run ended
    #[arg(long, value_name = "DAYS")]
    skip_verified: Option<u32>,
    /// Read at most so many KiB of data a second
    #[arg(long, value_name = "KIBPS", value_parser = clap::value_parser!(u64).range(1..))]
    bwlimit: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An archive to verify.
struct Candidate {
    /// As the user knows it.
    name: String,
    path: PathBuf,
}

/// What became of all of them.
#[derive(Default)]
struct Tally {
    damaged: usize,
    troubles: usize,
    results: Vec<Value>,
}

/// Verifies them. The exit code is 1 when one is damaged, 255 when one could not be judged.
pub fn run(args: &Verify) -> ExitCode {
    let (host, cancel) = (Host::from_env(), Cancel::new());
    let done = cancel.on_signals().context("signals cannot be handled").and_then(|()| all(&host, args, &cancel));
    match done {
        Ok(tally) => {
            if args.json {
                say(&format!("{:#}\n", Value::from(tally.results)));
            }
            match tally {
                Tally { damaged: 1.., .. } => ExitCode::from(DAMAGED),
                Tally { troubles: 1.., .. } => ExitCode::from(FAILED),
                _ => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            complain(&format!("{}\n", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

fn all(host: &Host, args: &Verify, cancel: &Cancel) -> Result<Tally> {
    let mut tally = Tally::default();
    let (candidates, troubles) = candidates(host, args)?;
    for trouble in troubles {
        complain(&format!("{trouble}\n"));
        tally.troubles += 1;
    }
    for candidate in candidates {
        match one(host, args, &candidate, cancel) {
            Ok(None) => {}
            Ok(Some((verified, seconds))) => {
                tally.damaged += usize::from(!verified.damage.is_empty());
                tally.results.push(as_json(&candidate, &verified));
                if !args.json {
                    say(&as_text(&candidate, &verified, seconds));
                }
            }
            // What was verified before that is written down.
            Err(error) if matches!(error.downcast_ref(), Some(TransferError::Cancelled)) => return Err(error),
            Err(error) => {
                complain(&format!("{}: {}\n", candidate.name, sentence(&error)));
                tally.troubles += 1;
            }
        }
    }
    Ok(tally)
}

/// The archives that are asked for, and which storages could not be looked at.
fn candidates(host: &Host, args: &Verify) -> Result<(Vec<Candidate>, Vec<String>)> {
    let what = args.what.as_deref().unwrap_or_default();
    let dir = Path::new(what);
    let guest = what.parse::<Vmid>().ok().filter(|_| !host.path(dir).exists());
    let is_dir = !what.is_empty() && std::path::absolute(dir).is_ok_and(|dir| host.path(dir).is_dir());
    if !args.all && guest.is_none() && !is_dir {
        if let Some(storage) = &args.storage {
            bail!("--storage {storage} goes with a guest or with --all; '{what}' is an archive");
        }
        let path = place_of_archive(host, dir)?;
        return Ok((vec![Candidate { name: what.to_owned(), path }], Vec::new()));
    }
    let (shelves, mut troubles) = shelves(host, args.storage.as_deref(), is_dir.then_some(dir))?;
    let mut candidates = Vec::new();
    for shelf in &shelves {
        match shelf.archives(host) {
            Ok(found) => {
                let wanted = found.into_iter().filter(|f| guest.is_none() || f.entry.archive.vmid() == guest);
                candidates.extend(wanted.map(|found| Candidate { name: found.name, path: found.path }));
            }
            Err(error) => troubles.push(sentence(&error)),
        }
    }
    if let Some(guest) = guest.filter(|_| candidates.is_empty() && troubles.is_empty()) {
        bail!("there is no archive of guest {guest}");
    }
    Ok((candidates, troubles))
}

/// Verifies one; none if it was left out. Also how long it took, in seconds.
fn one(host: &Host, args: &Verify, candidate: &Candidate, cancel: &Cancel) -> Result<Option<(Verified, u64)>> {
    let Candidate { name, path } = candidate;
    let (dir, file) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let file = file.to_string_lossy();
    let now = host.now().timestamp().as_second();
    let meta = path.metadata()?;
    if let Some(days) = args.skip_verified {
        let known =
            verdicts(dir).with_context(|| format!("reading what was verified in '{}' failed", dir.display()))?;
        let fresh = |verdict: &&Verdict| {
            verdict.is_of(&meta) && verdict.damage.is_empty() && now - verdict.time < i64::from(days) * DAY
        };
        if known.get(file.as_ref()).filter(fresh).is_some() {
            return Ok(None);
        }
    }
    let started = Instant::now();
    let mut shown = started;
    let is_terminal = std::io::stderr().is_terminal() && !args.json;
    let mut progress = |progress: &VerifyProgress| {
        if is_terminal && shown.elapsed() >= SHOWN {
            shown = Instant::now();
            complain(&format!("\r\x1b[K{name}: {}", so_far(progress)));
        }
    };
    let verified = verify(host, path, args.bwlimit.map(|kib| kib.saturating_mul(1024)), &mut progress, cancel);
    if is_terminal {
        complain("\r\x1b[K");
    }
    let verified = verified?;
    if args.record {
        let verdict = Verdict {
            size: meta.len(),
            changed: changed(&meta),
            time: now,
            checked: verified.checked.word().to_owned(),
            damage: verified.damage.clone(),
        };
        record(dir, &file, verdict)
            .with_context(|| format!("writing down in '{}' what it came to failed", dir.display()))?;
    }
    Ok(Some((verified, started.elapsed().as_secs())))
}

fn so_far(progress: &VerifyProgress) -> String {
    match progress.total {
        Some(total) if total > 0 => {
            let percent = u128::from(progress.done) * 100 / u128::from(total);
            format!("{percent}% ({} of {})", human(progress.done, 1), human(total, 1))
        }
        _ => human(progress.done, 1),
    }
}

fn as_text(candidate: &Candidate, verified: &Verified, seconds: u64) -> String {
    let Verified { checked, data, damage, more, .. } = verified;
    let name = &candidate.name;
    if damage.is_empty() {
        let speed = rate(*data, seconds);
        return format!("{name}: good; checked {checked} ({} in {seconds} s, {speed})\n", human(*data, 1));
    }
    let mut text = format!("{name}: DAMAGED; checked {checked}\n");
    damage.iter().for_each(|damage| text += &format!("  {damage}\n"));
    if *more > 0 {
        text += &format!("  and {more} more damaged places\n");
    }
    text
}

fn as_json(candidate: &Candidate, verified: &Verified) -> Value {
    json!({
        "archive": candidate.name,
        "path": candidate.path.display().to_string(),
        "state": if verified.damage.is_empty() { "ok" } else { "damaged" },
        "checked": verified.checked.word(),
        "data": verified.data,
        "damage": verified.damage,
        "more": verified.more,
    })
}
