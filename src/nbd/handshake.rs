//! The first minute of a connection: fixed newstyle handshake, options, choice of the export.
//!
//! Works on anything that is `Read + Write`, so that tests can play the server from memory. The number and the size of the
//! server's replies are bounded; time is bounded by the stream that is passed in.

use std::io::{Read, Write};

use super::NbdError;
use super::vocabulary::*;
use super::wire::{printable, take, take_vec};

/// Replies to one option; a server has no reason to send more than a handful.
const MAX_REPLIES: usize = 256;
const MAX_REPLY_LEN: u32 = 64 << 10;

/// What the server said about the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub size: u64,
    /// Nothing can be written.
    pub read_only: bool,
    /// The export takes a flush.
    pub can_flush: bool,
    /// The export takes a trim.
    pub can_trim: bool,
    /// The export takes a request to write zeros.
    pub can_write_zeroes: bool,
    /// Reads can be answered in one piece, on demand.
    pub can_df: bool,
    /// Requests must start and end on multiples of this; a power of two, at most 64 KiB.
    pub min_block: u32,
    /// The longest payload of one request; a multiple of `min_block`.
    pub max_block: u32,
    /// Replies come in chunks.
    pub structured: bool,
    /// The meta contexts the server agreed to, with the numbers it gave them.
    pub contexts: Vec<(String, u32)>,
}

/// Talks until the transmission phase begins.
pub(crate) fn negotiate(
    stream: &mut (impl Read + Write),
    name: &str,
    meta_contexts: &[String],
) -> Result<Export, NbdError> {
    let magic = u64::from_be_bytes(take(stream)?);
    if magic != MAGIC {
        return Err(NbdError::Protocol(format!("it greets with {magic:#018x}, not as an NBD server")));
    }
    if u64::from_be_bytes(take(stream)?) != OPTION_MAGIC {
        return Err(refused(name, "it speaks only the old handshake of the protocol".into()));
    }
    let flags = u16::from_be_bytes(take(stream)?);
    if flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(refused(name, "it does not speak the fixed newstyle handshake".into()));
    }
    send(stream, &u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)).to_be_bytes())?;

    let structured = structured_replies(stream, name)?;
    let contexts = match structured && !meta_contexts.is_empty() {
        true => set_meta_contexts(stream, name, meta_contexts)?,
        false => Vec::new(),
    };
    go(stream, name, structured, contexts)
}

fn structured_replies(stream: &mut (impl Read + Write), name: &str) -> Result<bool, NbdError> {
    option(stream, OPT_STRUCTURED_REPLY, &[])?;
    match reply(stream, OPT_STRUCTURED_REPLY)? {
        (REP_ACK, _) => Ok(true),
        (kind, _) if kind & REP_IS_ERROR != 0 => Ok(false),
        (kind, _) => Err(unexpected(name, kind)),
    }
}

fn set_meta_contexts(
    stream: &mut (impl Read + Write),
    name: &str,
    wanted: &[String],
) -> Result<Vec<(String, u32)>, NbdError> {
    let mut data = string(name);
    data.extend((wanted.len() as u32).to_be_bytes());
    for context in wanted {
        data.extend(string(context));
    }
    option(stream, OPT_SET_META_CONTEXT, &data)?;
    let mut contexts: Vec<(String, u32)> = Vec::new();
    for _ in 0..MAX_REPLIES {
        match reply(stream, OPT_SET_META_CONTEXT)? {
            (REP_ACK, _) => return Ok(contexts),
            (REP_META_CONTEXT, data) => {
                let (id, given) = data.split_first_chunk().ok_or_else(|| unexpected(name, REP_META_CONTEXT))?;
                let id = u32::from_be_bytes(*id);
                let asked = wanted.iter().find(|w| w.as_bytes() == given);
                match asked {
                    Some(asked) if contexts.iter().all(|(n, i)| n != asked && *i != id) => {
                        contexts.push((asked.clone(), id));
                    }
                    _ => {
                        let what = format!("it offers meta context {:?} unasked or twice", printable(given));
                        return Err(NbdError::Protocol(what));
                    }
                }
            }
            (REP_ERR_UNSUP, _) => return Ok(Vec::new()),
            (kind, data) if kind & REP_IS_ERROR != 0 => return Err(refused(name, error_text(kind, &data))),
            (kind, _) => return Err(unexpected(name, kind)),
        }
    }
    Err(endless())
}

fn go(
    stream: &mut (impl Read + Write),
    name: &str,
    structured: bool,
    contexts: Vec<(String, u32)>,
) -> Result<Export, NbdError> {
    let mut data = string(name);
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    option(stream, OPT_GO, &data)?;
    let mut size_and_flags = None;
    let mut blocks = (1, DEFAULT_MAX_BLOCK);
    for _ in 0..MAX_REPLIES {
        match reply(stream, OPT_GO)? {
            (REP_ACK, _) => {
                let (size, flags) = size_and_flags
                    .ok_or_else(|| NbdError::Protocol("it agreed to the export without telling its size".into()))?;
                let (min_block, max_block) = blocks;
                return Ok(Export {
                    size,
                    read_only: flags & SEND_READ_ONLY != 0,
                    can_flush: flags & SEND_FLUSH != 0,
                    can_trim: flags & SEND_TRIM != 0,
                    can_write_zeroes: flags & SEND_WRITE_ZEROES != 0,
                    can_df: flags & SEND_DF != 0 && structured,
                    min_block,
                    max_block,
                    structured,
                    contexts,
                });
            }
            (REP_INFO, data) => match info(&data)? {
                Info::Export(size, flags) => size_and_flags = Some((size, flags)),
                Info::Blocks(min, max) => blocks = (min, max),
                Info::Other => {}
            },
            (kind, data) if kind & REP_IS_ERROR != 0 => return Err(refused(name, error_text(kind, &data))),
            (kind, _) => return Err(unexpected(name, kind)),
        }
    }
    Err(endless())
}

enum Info {
    Export(u64, u16),
    Blocks(u32, u32),
    Other,
}

fn info(data: &[u8]) -> Result<Info, NbdError> {
    let odd = || NbdError::Protocol(format!("an export information of {} bytes", data.len()));
    let (kind, rest) = data.split_first_chunk().ok_or_else(odd)?;
    match u16::from_be_bytes(*kind) {
        INFO_EXPORT => {
            let rest: [u8; 10] = rest.try_into().map_err(|_| odd())?;
            let size = rest[..8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
            if size > i64::MAX as u64 {
                return Err(NbdError::Protocol(format!("an export size of {size} bytes")));
            }
            Ok(Info::Export(size, u16::from_be_bytes([rest[8], rest[9]])))
        }
        INFO_BLOCK_SIZE => {
            let rest: [u8; 12] = rest.try_into().map_err(|_| odd())?;
            let number = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let (min, max) = (number(0), number(8));
            if !min.is_power_of_two() || min > 1 << 16 || max < min {
                return Err(NbdError::Protocol(format!("block sizes from {min} to {max} bytes")));
            }
            Ok(Info::Blocks(min, max.min(DEFAULT_MAX_BLOCK) / min * min))
        }
        _ => Ok(Info::Other),
    }
}

fn option(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    send(stream, &out)
}

fn reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), NbdError> {
    let magic = u64::from_be_bytes(take(stream)?);
    let answered = u32::from_be_bytes(take(stream)?);
    let kind = u32::from_be_bytes(take(stream)?);
    let len = u32::from_be_bytes(take(stream)?);
    if magic != REPLY_MAGIC || answered != option || len > MAX_REPLY_LEN {
        let what = format!("magic {magic:#x}, option {answered}, {len} bytes as the reply to option {option}");
        return Err(NbdError::Protocol(what));
    }
    Ok((kind, take_vec(stream, len)?))
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> Result<(), NbdError> {
    stream.write_all(bytes).map_err(|e| NbdError::from_io(&e))
}

fn refused(export: &str, reason: String) -> NbdError {
    NbdError::Refused { export: export.into(), reason }
}

fn error_text(kind: u32, data: &[u8]) -> String {
    let said = printable(data);
    match kind {
        REP_ERR_UNKNOWN if said.is_empty() => "there is no such export".into(),
        REP_ERR_UNSUP if said.is_empty() => "it lacks an option of the handshake that is needed".into(),
        _ if said.is_empty() => format!("error {:#x}", kind & !REP_IS_ERROR),
        _ => said,
    }
}

fn unexpected(export: &str, kind: u32) -> NbdError {
    NbdError::Protocol(format!("a reply of type {kind:#x} while export {export:?} was asked for"))
}

fn endless() -> NbdError {
    NbdError::Protocol(format!("more than {MAX_REPLIES} replies to one option"))
}
