//! The wish to stop: one flag that a signal handler, a failing thread or a test sets and every loop looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// What asks us to stop.
const SIGNALS: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// A shared flag. Clones refer to the same flag; once set it stays set.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    wanted: Arc<AtomicBool>,
    /// A signal that nobody has looked at yet.
    signal: Arc<AtomicBool>,
    /// Signals set the flag, now or always.
    handled: Arc<AtomicBool>,
    /// Signals do what they do to a program that does not care.
    unminded: Arc<AtomicBool>,
}

/// Held while signals set the flag. Afterwards they end the program, as they did before.
#[derive(Debug)]
pub struct Minded(Arc<AtomicBool>);

impl Drop for Minded {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Cancel {
    /// A flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody who holds a clone to stop.
    pub fn set(&self) {
        self.signal.store(true, Ordering::SeqCst);
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to stop.
    pub fn is_set(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Whether somebody asked to stop since this was last called: tells a second wish from the first.
    pub fn take_signal(&self) -> bool {
        self.signal.swap(false, Ordering::SeqCst)
    }

    /// Sets the flag when one of TERM, INT, HUP, QUIT arrives; until the process ends.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        self.handled.store(true, Ordering::SeqCst);
        for signal in SIGNALS {
            // In this order: who sees the wish never takes the signal that brought it for a second one.
            signal_hook::flag::register(signal, Arc::clone(&self.signal))?;
            signal_hook::flag::register(signal, Arc::clone(&self.wanted))?;
        }
        Ok(())
    }

    /// As [`Self::on_signals`], but only as long as the result is held: for a step that leaves something behind if the program
    /// is ended, in a program that is otherwise ended at once. Changes nothing where signals set the flag anyway.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn on_signals_meanwhile(&self) -> std::io::Result<Minded> {
        self.unminded.store(false, Ordering::SeqCst);
        if !self.handled.load(Ordering::SeqCst) {
            for signal in SIGNALS {
                signal_hook::flag::register_conditional_default(signal, Arc::clone(&self.unminded))?;
            }
            self.on_signals()?;
        }
        Ok(Minded(Arc::clone(&self.unminded)))
    }
}
