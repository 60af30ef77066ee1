//! Looking at directories that may not answer. A network file system whose server is gone holds whoever touches it, often
//! beyond the reach of any signal, so a helper process looks: our own program again, with the word `probe`. When it does not
//! come back in time it is killed and left alone; the kernel ends it whenever the server returns.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::host::Host;
use crate::host::child::reap;

/// The word our program is called with as a helper.
pub const WORD: &str = "probe";

/// How long a directory may take to answer; a disk that has to spin up needs a few seconds.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Is it there, and does its file system answer?
    Look,
    /// The same, after making it if it is missing.
    Make,
    /// The same as [`Question::Look`], with the names in it.
    List,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The directory's path without symbolic links.
    pub path: PathBuf,
    /// The names in it, if they were asked for; those that are not UTF-8 are none of ours, and missing.
    pub names: Vec<String>,
}

impl Question {
    fn word(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Make => "make",
            Self::List => "list",
        }
    }

    /// Asks a helper process about the directory `path`.
    ///
    /// # Errors
    /// What the system said; [`io::ErrorKind::TimedOut`] when there was no answer within [`PATIENCE`].
    pub fn ask(self, host: &Host, path: &Path) -> io::Result<Answer> {
        let mut command = host.command("/proc/self/exe");
        // Whatever name this program was called by, the helper is called by its first.
        command.arg0("vzkeep").arg(WORD).arg(self.word()).arg(path);
        // An abandoned helper must hold none of our pipes: somebody may be waiting for their end.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let deadline = Instant::now() + PATIENCE;
        let mut child = command.spawn()?;
        let said = match child.stdout.take() {
            Some(mut pipe) => read_until(&mut pipe, deadline),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        reap(&mut child);
        parse(&said?)
    }

    fn answer(self, path: &Path) -> io::Result<Answer> {
        if self == Self::Make {
            fs::create_dir_all(path)?;
        }
        if !fs::metadata(path)?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        // What is known of a directory may come from a cache; this question always goes to the server.
        nix::sys::statvfs::statvfs(path)?;
        let mut names = Vec::new();
        if self == Self::List {
            for entry in fs::read_dir(path)? {
                names.extend(entry?.file_name().into_string());
            }
        }
        Ok(Answer { path: fs::canonicalize(path)?, names })
    }
}

/// The helper's side: answers the question in `words` (`look /mnt/bk`), as text for the one who asked.
pub fn serve(words: &[OsString]) -> String {
    let question = [Question::Look, Question::Make, Question::List]
        .into_iter()
        .find(|question| words.first().is_some_and(|word| word == question.word()));
    let answer = match (question, words.get(1)) {
        (Some(question), Some(path)) => question.answer(Path::new(path)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    let value = match answer {
        Ok(answer) => json!({ "path": answer.path.to_string_lossy(), "names": answer.names }),
        Err(error) => json!({ "errno": error.raw_os_error(), "error": error.to_string() }),
    };
    value.to_string()
}

fn parse(said: &[u8]) -> io::Result<Answer> {
    let value: Value =
        serde_json::from_slice(said).map_err(|_| io::Error::other("the helper process gave no answer"))?;
    if let Some(path) = value["path"].as_str() {
        let names = value["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        return Ok(Answer { path: path.into(), names: names.map(str::to_owned).collect() });
    }
    let errno = value["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok());
    Err(errno.map_or_else(|| io::Error::other(value["error"].to_string()), io::Error::from_raw_os_error))
}

/// Everything that comes out of `pipe`, if its end comes before `deadline`.
fn read_until(pipe: &mut ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut piece = [0; 64 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], millis) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")),
            Ok(_) => {}
        }
        match pipe.read(&mut piece)? {
            0 => return Ok(said),
            read => said.extend_from_slice(&piece[..read]),
        }
    }
}
