//! The phases of a VM's backup between its lock and its release, each in the order and with the words of the original.

use std::time::{Duration, Instant};

use super::copy::QMP_PATIENCE;
use super::guest_run::{GuestError, GuestRun};
use super::hooks::describe::GuestFacts;
use super::log::Kind;
use crate::config::GuestConfig;
use crate::guest::held::Held;
use crate::guest::monitor::qmp_socket;
use crate::guest::power::PowerError;
use crate::guest::record::Intent;
use crate::guest::vm::Vm;
use crate::host::bridge;
use crate::qemu::Qmp;
use crate::schema::Mode;
use crate::storage::GuestKind;

/// How long a guest that ignored its power button is watched at least, in case it obeys after all.
pub(super) const LINGER: Duration = Duration::from_secs(10);

impl GuestRun<'_> {
    pub(super) fn backup_vm(&mut self) -> Result<(), GuestError> {
        self.running = self.power.is_running();
        let mut held = self.hold()?;
        // A killed run may have left the guest switched off, and taking it switched it on again.
        self.qemu = self.power.pid();
        self.running = self.qemu.is_some();
        let result = self.look_for_pause().and_then(|()| self.locked(&mut held));
        self.let_go(held, result.is_ok());
        self.after_unlock();
        result
    }

    /// A guest that its administrator paused stays paused, whatever the mode.
    fn look_for_pause(&mut self) -> Result<(), GuestError> {
        if self.running && self.mode != Mode::Snapshot {
            let socket = qmp_socket(self.job.host, self.vmid.get());
            let mut qmp = Qmp::connect_unless(&socket, QMP_PATIENCE, self.job.cancel)?;
            let status = qmp.execute("query-status", serde_json::json!({}))?;
            self.paused = status["status"] == "paused";
        }
        Ok(())
    }

    /// What happens while the config carries our lock.
    fn locked(&mut self, held: &mut Held) -> Result<(), GuestError> {
        let job = self.job;
        let config = GuestConfig::parse(&self.read_config()?);
        if !self.running {
            self.mode = Mode::Stop;
        }
        let vm = if self.mode == Mode::Snapshot {
            let vm = self.prepare(config)?;
            self.announce_mode();
            vm
        } else {
            self.announce_mode();
            self.prepare(config)?
        };
        self.check_server(&vm)?;
        self.reserve(held)?;
        self.hook("backup-start")?;
        match self.mode {
            _ if !self.running => {}
            Mode::Snapshot => {
                self.hook("pre-stop")?;
                self.hook("pre-restart")?;
                self.hook("post-restart")?;
            }
            Mode::Stop => {
                // Before it is switched off: afterwards nobody could start it for the backup.
                if !bridge::available(job.host) {
                    return Err(GuestError::NoBridge);
                }
                if self.paused {
                    return Err(GuestError::Paused);
                }
                job.log.info("stopping virtual guest");
                self.still_since.set(Some(Instant::now()));
                self.hook("pre-stop")?;
                held.note(&self.shut_down())?;
                self.switch_off(held)?;
                self.restart = true;
            }
            Mode::Suspend => {
                job.log.info("suspending guest");
                if !self.paused {
                    self.still_since.set(Some(Instant::now()));
                }
                self.hook("pre-stop")?;
                if !self.paused {
                    held.note(&Intent::Paused)?;
                    self.power.suspend()?;
                }
                self.restart = true;
            }
        }
        if let Some(repository) = &job.destination.pbs {
            self.send(repository, &vm, held)?;
            self.dress_snapshot(repository)?;
            return self.hook("backup-end");
        }
        self.archive(&vm, held)?;
        self.complete(held)
    }

    /// Presses the power button. A guest that ignores it goes on running, and the backup has failed.
    fn switch_off(&self, held: &mut Held) -> Result<(), GuestError> {
        let patience = Duration::from_secs(60 * self.job.options.stopwait);
        let off = self.power.shutdown(patience, self.job.cancel, &mut |line| self.job.log.info(line));
        if matches!(off, Err(PowerError::Command { .. })) {
            // It may still be about to end: then it has to be started again, but nobody waits longer than was asked for.
            held.leaving = patience.clamp(LINGER, held.leaving.max(LINGER));
        }
        Ok(off?)
    }

    pub(super) fn shut_down(&self) -> Intent {
        Intent::ShutDown { qemu: self.qemu }
    }

    /// Lists the disks and makes sure they are there.
    fn prepare(&mut self, config: GuestConfig) -> Result<Vm, GuestError> {
        let log = &self.job.log;
        let mut vm = Vm::new(self.vmid.get(), config);
        self.env.hostname = vm.config.name();
        if let Some(name) = &self.env.hostname {
            log.info(&format!("VM Name: {name}"));
        }
        for volume in &vm.volumes {
            log.info(&volume.to_string());
        }
        self.story.guest = Some(GuestFacts {
            vmid: vm.vmid,
            kind: GuestKind::Qemu.as_str(),
            name: self.env.hostname.clone(),
            running: self.running,
            disks: vm.volumes.iter().map(Into::into).collect(),
        });
        vm.find_disks(self.job.volumes)?;
        Ok(vm)
    }

    /// After the lock is gone: the phases in which the original lets a stopped or suspended guest go on, whatever became of the
    /// backup. Ours went on long ago; a hook that fails here changes nothing any more.
    fn after_unlock(&self) {
        if !self.restart {
            return;
        }
        let restart = || -> Result<(), GuestError> {
            self.call_hook("pre-restart", false)?;
            if self.mode == Mode::Suspend && !self.paused {
                self.job.log.info("resume vm");
                self.power.resume()?;
            } else if self.mode == Mode::Stop && self.still_since.get().is_some() {
                self.job.log.info("restarting vm");
            }
            self.call_hook("post-restart", false)
        };
        match (restart(), self.stood_still()) {
            (Err(error), _) => self.job.log.line(Kind::Bare, &error.to_string()),
            (Ok(()), None) => {}
            (Ok(()), Some(seconds)) => self.job.log.info(&format!("guest is online again after {seconds} seconds")),
        }
    }

    /// Says that the guest goes on; after how long, the first time.
    pub(super) fn say_resumed(&self) {
        if self.paused {
            return;
        }
        let after = self.still_since.take().map(|since| {
            // The original counts whole seconds and never less than one.
            format!(" after {} seconds", since.elapsed().as_secs().max(1))
        });
        self.job.log.info(&format!("resuming VM again{}", after.unwrap_or_default()));
    }
}
