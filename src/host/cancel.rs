//! The wish to stop: one flag that a signal handler, a failing thread or a test sets and every loop looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A shared flag. Clones refer to the same flag; once set it stays set.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    wanted: Arc<AtomicBool>,
    /// A signal that nobody has looked at yet.
    signal: Arc<AtomicBool>,
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
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            // In this order: who sees the wish never takes the signal that brought it for a second one.
            signal_hook::flag::register(signal, Arc::clone(&self.signal))?;
            signal_hook::flag::register(signal, Arc::clone(&self.wanted))?;
        }
        Ok(())
    }
}
