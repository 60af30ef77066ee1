//! Tests of the client against servers that play by a script, honest and hostile ones.

mod client;
mod handshake;
mod hostile;
mod reply;
mod script;
