//! The hooks of one job: the script of its options first, then those of the directory that `/etc/vzkeep.conf` names; and
//! what that file adds for them: deadlines, older variables, a description on standard input.

use super::describe::{JobFacts, Story, describe};
use super::{Given, Hook, HookEnv, HookError, Limits, directory};
use crate::config::VzkeepConf;
use crate::host::{Cancel, Host};
use crate::schema::VzdumpOptions;

/// Phases whose failure is only a warning. All hooks see them: what one has set up it must be able to take down,
/// whatever the others do.
const CLEAN_UP: [&str; 3] = ["backup-abort", "log-end", "job-abort"];

/// All hooks of a job.
#[derive(Debug, Default)]
pub struct Hooks {
    programs: Vec<Hook>,
    conf: VzkeepConf,
    job: JobFacts,
}

impl Hooks {
    /// The hooks of the job that `options` describe, run as task `upid`. What is ignored on the way is told to `warn`.
    ///
    /// # Errors
    /// When the script cannot be called, or `/etc/vzkeep.conf` or the directory it names cannot be read.
    pub fn open(
        host: &Host,
        options: &VzdumpOptions,
        upid: &str,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Self, HookError> {
        let conf = settings(host)?;
        conf.warnings.iter().for_each(|warning| warn(warning));
        let mut programs: Vec<Hook> =
            options.script.as_deref().map(|script| Hook::new(host, script)).transpose()?.into_iter().collect();
        if let Some(dir) = &conf.hooks_dir {
            let (found, warnings) = directory::list(host, dir)?;
            warnings.iter().for_each(|warning| warn(warning));
            programs.extend(found);
        }
        Ok(Self { programs, conf, job: JobFacts::new(host, options, upid) })
    }

    /// Calls the hooks with `args` (`["backup-start", "snapshot", "100"]`), one after the other. The first that fails ends the
    /// phase, but for phases that only clean up. With `interruptible`, a wish to stop ends the hook at work; without, only a
    /// second one does.
    ///
    /// # Errors
    /// As the hook that failed first.
    pub fn call(
        &self,
        args: &[&str],
        env: &HookEnv,
        story: &Story,
        (cancel, interruptible): (&Cancel, bool),
        line: &mut dyn FnMut(&str),
    ) -> Result<(), HookError> {
        let phase = args.first().copied().unwrap_or_default();
        let limits = Limits { cancel, clean_up: !interruptible, timeout: self.conf.hook_timeout(phase) };
        let mut failed: Option<HookError> = None;
        for program in &self.programs {
            let mut given = Given { env: env.pairs().collect(), input: None };
            if self.conf.hook_legacy_env {
                given.env.extend(env.legacy_pairs());
            }
            if self.conf.hook_json {
                given.input = Some(describe(&self.job, args, env, story));
            }
            let ended = program.run(args, given, limits, line);
            // Ctrl-C reaches the script as well as us: what it made of it is not the reason why the job ends. And a script that
            // ended before we looked must not make us forget the wish.
            if interruptible && cancel.is_set() {
                return Err(HookError::Interrupted);
            }
            match ended {
                Ok(()) => {}
                Err(error) if CLEAN_UP.contains(&phase) => match &failed {
                    None => failed = Some(error),
                    Some(_) => line(&error.to_string()),
                },
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn settings(host: &Host) -> Result<VzkeepConf, HookError> {
    match std::fs::read(host.path(VzkeepConf::PATH)) {
        Ok(bytes) => Ok(VzkeepConf::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(VzkeepConf::default()),
        Err(source) => Err(HookError::Settings { path: VzkeepConf::PATH, source }),
    }
}
