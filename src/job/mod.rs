//! One job: what happens around the copying of data. Here: hook scripts, the task record and the log.

pub mod hooks;
pub mod log;
pub mod tasklog;
pub mod upid;
