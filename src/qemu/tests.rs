//! Tests against a real QEMU (TCG, no operating system in the guest) and against scripted sockets.

mod agent;
mod faults;
mod lab;
mod monitor;
mod moving;
mod session;
