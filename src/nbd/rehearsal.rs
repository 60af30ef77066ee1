//! Plays a client against bytes that came from anywhere: the body of the fuzz target `nbd_reply`, and of the plain test
//! that runs its corpus.

use std::io::Read;

use super::NbdError;
use super::reply::{Step, Table};
use super::wire::{Body, Command, read_event};

/// Opens two reads, a block status and a write, and takes `input` for the server's answers. The first byte tells whether
/// structured replies were agreed on. Gives how many requests were answered.
///
/// # Errors
/// When the bytes are not what a server may send.
///
/// # Panics
/// When the bookkeeping accepts what it must not: that is what the fuzzer looks for.
pub fn rehearse(mut input: &[u8]) -> Result<usize, NbdError> {
    let Some((first, rest)) = input.split_first() else { return Ok(0) };
    input = rest;
    let mut table = Table::new(first & 1 != 0, vec![1, 7]);
    let requests = [
        (Command::Read, 4096..8192u64),
        (Command::Read, 8192..(1 << 20)),
        (Command::BlockStatus, 0..1 << 30),
        (Command::Write, 0..512),
    ];
    let mut filled = [0u64; 4];
    for (command, range) in &requests {
        table.open(*command, range.clone());
    }
    let mut answered = 0;
    while answered < requests.len() {
        let event = read_event(&mut input)?;
        let slot = (event.cookie % 16) as usize;
        let hole = match event.body {
            Body::Hole { len, .. } => u64::from(len),
            _ => 0,
        };
        let mut step = table.apply(event)?;
        filled[slot] += hole;
        if let Step::Payload(payload) = step {
            let (_, range) = &requests[payload.slot];
            assert!(payload.range.start >= range.start && payload.range.end <= range.end, "data outside of its read");
            let len = payload.range.end - payload.range.start;
            let skipped = std::io::copy(&mut (&mut input).take(len), &mut std::io::sink());
            if skipped.map_err(|e| NbdError::from_io(&e))? < len {
                return Err(NbdError::Lost("the bytes end inside a payload".into()));
            }
            filled[payload.slot] += len;
            step = table.payload_read(&payload)?;
        }
        if let Step::Settled(slot) = step {
            let (command, range) = &requests[slot];
            let finished = table.take(slot);
            let whole = filled[slot] == range.end - range.start;
            assert!(*command != Command::Read || finished.error.is_some() || whole, "bytes of a read are missing");
            answered += 1;
        }
    }
    Ok(answered)
}
