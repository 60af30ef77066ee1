//! `vzkeep <verb>`: the commands that are our own. The drop-ins have tables of their own in [`crate::schema`]; these are
//! clap's, and so are their help, their man page and their completions.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use super::complete::{self, Candidates};
use super::{FAILED, complain, say};
use crate::host::Host;
use crate::schema::tables::{PCT_RESTORE, QMRESTORE, VZDUMP};
use crate::schema::{Shell, Vmid};

/// Backs up and restores virtual machines behind the command lines administrators already use.
#[derive(Debug, Parser)]
#[command(
    name = "vzkeep",
    version,
    after_help = "Drop-ins, also as programs of these names:
  vzkeep vzdump {<vmid>} [OPTIONS]               back up guests; 'vzkeep vzdump help' lists the options
  vzkeep qmrestore <archive> <vmid> [OPTIONS]    restore a virtual machine; 'vzkeep qmrestore help' lists the options
  vzkeep pct-restore <vmid> <archive> [OPTIONS]  restore a container; 'vzkeep pct-restore help' lists the options
  vzkeep vma <command> ...                       look into, unpack and make archives; 'vzkeep man vma' explains it"
)]
struct Native {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Backup jobs of jobs.cfg: list and show them, when they run next, run them
    Jobs(super::jobs::Jobs),
    /// List archives: guests, times, sizes, formats, notes, protection, what verification came to
    List(super::list::List),
    /// Show what is in an archive: configuration, disks, how much of them is data, how it can be read
    Show(super::show::Show),
    /// Read archives to the last byte and say exactly what is damaged
    ///
    /// Archives of vzkeep have a checksum for every byte. Those of others are held against what they have: the checksums of their
    /// compression, and their structure. The exit code is 1 when an archive is damaged, 255 when one cannot be judged.
    Verify(super::verify::Verify),
    Ls(super::look::Ls),
    Cat(super::look::Cat),
    Extract(super::look::Extract),
    /// Serve the disks of an archive over NBD, to read or, with an overlay, also to write
    ///
    /// Prints a line for each disk: name, size, and the URI that QEMU, nbdcopy and others take; the name works without
    /// 'drive-', too. Runs until it gets Ctrl-C or TERM; then requests under way are answered and the socket is removed.
    Map(super::map::Map),
    /// Restore the disks of a virtual machine's archive as files, or one of them onto a block device
    ///
    /// Into a directory: the configuration files and 'drive-scsi0.raw' (or .qcow2) for each disk, which have their names only
    /// when all of them are complete. Onto a block device: exactly one disk; what is behind its end there stays as it is.
    /// Nothing that exists is overwritten but the block device.
    Restore(super::restore::Restore),
    /// Compare two archives, restored directories or disk images byte by byte
    ///
    /// Exit code 0 when all disks and configuration files are the same, 1 when anything differs, 255 when that cannot be found
    /// out.
    Compare(super::compare::Compare),
    /// Write the archive of a virtual machine anew, compressed in another way or not at all
    ///
    /// The new one has the same configuration files, disks, time and UUID, and an index. Nothing that exists is overwritten.
    Convert(super::convert::Convert),
    /// Read archives of other programs once, and keep beside them what it takes to read them at any place
    ///
    /// Writes '<archive>.idx' for .zst, .gz and .lzo files that vzkeep did not make: with it, 'map', 'mount' and 'cat' begin at
    /// once. It is used only while the archive is what it was, and may be removed at any time. Retention removes it with the archive;
    /// Proxmox's own tools leave it.
    Index(super::index::Index),
    Mount(super::mount::Mount),
    /// Restore a virtual machine that runs within seconds, while its data is copied behind it
    ///
    /// As 'qmrestore --live-restore'. The machine is complete, and unlocked, when the command ends. If it fails or is
    /// stopped before, the machine is removed again, with all it has written since.
    LiveRestore(super::live::LiveRestore),
    /// Print the man page of a program
    Man {
        /// The program
        program: Program,
    },
    /// Print the completion script of a program
    Completion {
        /// The program
        program: Program,
        /// The shell it is for
        #[arg(long, default_value = "bash")]
        shell: clap_complete::Shell,
    },
    /// Explain who holds a guest's lock, and remove it when they are gone
    ///
    /// Removes a 'lock: backup' whose owner is provably gone, and undoes what a killed run left of the guest. Refuses
    /// with the reason otherwise (exit code 255).
    Unlock {
        /// The guest
        vmid: Vmid,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the version
    Version,
    /// Print what can be completed, one candidate a line; the completion scripts call it
    #[command(hide = true)]
    Complete {
        /// What to list
        source: Candidates,
    },
}

/// The names this program has.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Program {
    Vzkeep,
    Vzdump,
    Qmrestore,
    PctRestore,
    Vma,
}

impl Program {
    fn table(self) -> Option<&'static crate::schema::Command> {
        match self {
            Self::Vzkeep | Self::Vma => None,
            Self::Vzdump => Some(&VZDUMP),
            Self::Qmrestore => Some(&QMRESTORE),
            Self::PctRestore => Some(&PCT_RESTORE),
        }
    }
}

/// Runs the verb that `args`, the words after the program's name, begin with.
pub fn run(args: &[OsString]) -> ExitCode {
    let is_jobs = args.first().is_some_and(|verb| verb == "jobs");
    let words = args.iter().map(|word| if is_jobs && word == "-" { "--stdin".into() } else { word.clone() });
    let words = std::iter::once(OsString::from("vzkeep")).chain(words);
    let native = match Native::try_parse_from(words) {
        Ok(native) => native,
        Err(error) => {
            let text = error.render().to_string();
            if error.use_stderr() {
                complain(&text);
                return ExitCode::from(FAILED);
            }
            say(&text);
            return ExitCode::SUCCESS;
        }
    };
    match native.verb {
        Verb::List(list) => return super::list::run(&list),
        Verb::Show(show) => return super::show::run(&show),
        Verb::Verify(verify) => return super::verify::run(&verify),
        Verb::Ls(ls) => return super::look::list(&ls),
        Verb::Cat(cat) => return super::look::cat(&cat),
        Verb::Extract(extract) => return super::look::extract(&extract),
        Verb::Map(map) => return super::map::run(&map),
        Verb::Restore(given) => return super::restore::run(&given),
        Verb::Compare(given) => return super::compare::run(&given),
        Verb::Index(given) => return super::index::run(&given),
        Verb::Convert(given) => return super::convert::run(&given),
        Verb::Mount(args) => return super::mount::run(&args),
        Verb::LiveRestore(live) => return super::live::run(live),
        Verb::Jobs(jobs) => return super::jobs::run(&jobs),
        Verb::Man { program } => say(&man(program)),
        Verb::Completion { program, shell } => match completion(program, shell) {
            Some(script) => say(&script),
            None => {
                complain(&format!("no completion of this program for {shell}, only for bash, zsh and fish\n"));
                return ExitCode::from(FAILED);
            }
        },
        Verb::Complete { source } => say(&complete::candidates(&Host::from_env(), source)),
        Verb::Unlock { vmid, dry_run } => return super::unlock::run(vmid, dry_run),
        Verb::Version => say(&format!("vzkeep {}\n", env!("CARGO_PKG_VERSION"))),
    }
    ExitCode::SUCCESS
}

fn man(program: Program) -> String {
    match program.table() {
        None if matches!(program, Program::Vma) => super::vma::man(env!("CARGO_PKG_VERSION")),
        Some(table) => crate::schema::man_page(table, env!("CARGO_PKG_VERSION")),
        None => {
            let mut page = Vec::new();
            // Writing to memory does not fail.
            clap_mangen::Man::new(Native::command()).render(&mut page).unwrap_or_default();
            String::from_utf8_lossy(&page).into_owned() + include_str!("vzkeep_after.roff")
        }
    }
}

fn completion(program: Program, shell: clap_complete::Shell) -> Option<String> {
    let table = program.table();
    if table.is_none() && !matches!(program, Program::Vma) {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Native::command(), "vzkeep", &mut script);
        return Some(String::from_utf8_lossy(&script).into_owned());
    }
    let shell = match shell {
        clap_complete::Shell::Bash => Shell::Bash,
        clap_complete::Shell::Zsh => Shell::Zsh,
        clap_complete::Shell::Fish => Shell::Fish,
        _ => return None,
    };
    Some(
        table.map_or_else(|| super::vma::completion(shell).to_owned(), |table| crate::schema::completion(table, shell)),
    )
}
