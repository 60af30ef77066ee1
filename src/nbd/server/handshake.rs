//! The server's side of the handshake: greeting, options, until the client has chosen an export.
//!
//! Works on anything that is `Read + Write`, so that tests and the fuzzer can play the client from memory. Number and size
//! of the options are bounded; time is bounded by the stream that is passed in. Options we do not know are refused in the
//! protocol's words, so that clients of tomorrow fall back to what we speak.

use std::io::{Read, Write};
use std::time::Duration;

use super::export::{Export, Exports};
use super::{BLOCK_SIZE, Ended};
use crate::nbd::BASE_ALLOCATION;
use crate::nbd::vocabulary::*;
use crate::nbd::wire::printable;

/// An option's data may be this long; what is longer is skipped and refused, and beyond [`MAX_SKIP`] ends the connection.
const MAX_OPTION: u32 = 64 << 10;
const MAX_SKIP: u32 = 1 << 20;
/// More options than any client has a reason to send.
const MAX_OPTIONS: usize = 1024;
/// The number of `base:allocation`, the only meta context there is.
pub(super) const CONTEXT: u32 = 1;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// Place of the export in the list.
    pub export: usize,
    /// Replies come in chunks.
    pub structured: bool,
    /// The client may ask for block status.
    pub status: bool,
}

/// Talks until the client has chosen an export. `None`: it said goodbye.
pub(super) fn negotiate(
    stream: &mut (impl Read + Write),
    exports: &Exports,
    patience: Duration,
) -> Result<Option<Session>, Ended> {
    let mut talk = Talk { stream, exports, patience, structured: false, context_of: None };
    talk.send(&[&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &0x0003u16.to_be_bytes()].concat())?;
    let flags = u32::from_be_bytes(talk.take()?);
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(Ended::Protocol(format!("flags {flags:#x} as the answer to the greeting")));
    }
    let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
    for _ in 0..MAX_OPTIONS {
        match talk.option(no_zeroes)? {
            Next::Option => {}
            Next::Goodbye => return Ok(None),
            Next::Chosen(export) => {
                let status = talk.structured && talk.context_of == Some(export);
                return Ok(Some(Session { export, structured: talk.structured, status }));
            }
        }
    }
    Err(Ended::Protocol(format!("more than {MAX_OPTIONS} options")))
}

/// What follows an option.
enum Next {
    Option,
    Goodbye,
    Chosen(usize),
}

struct Talk<'a, S> {
    stream: &'a mut S,
    exports: &'a Exports,
    patience: Duration,
    structured: bool,
    /// The export whose `base:allocation` was asked for.
    context_of: Option<usize>,
}

/// What an option's data turned out to be when it is not what it should be.
type Refusal = (u32, &'static str);

const ODD: Refusal = (REP_ERR_INVALID, "the data of this option has another length or form");
const NO_EXPORT: Refusal = (REP_ERR_UNKNOWN, "there is no export of this name");
const NOT_STRUCTURED: Refusal = (REP_ERR_INVALID, "structured replies have to be agreed on first");

impl<S: Read + Write> Talk<'_, S> {
    fn option(&mut self, no_zeroes: bool) -> Result<Next, Ended> {
        let magic = u64::from_be_bytes(self.take()?);
        if magic != OPTION_MAGIC {
            return Err(Ended::Protocol(format!("{magic:#018x} is not the start of an option")));
        }
        let option = u32::from_be_bytes(self.take()?);
        let len = u32::from_be_bytes(self.take()?);
        if len > MAX_SKIP {
            return Err(Ended::Protocol(format!("an option with {len} bytes of data")));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).map_err(|e| Ended::from_io(e, self.patience))?;
        if len > MAX_OPTION {
            self.refuse(option, (REP_ERR_TOO_BIG, "the data of this option is too long"))?;
            return Ok(Next::Option);
        }
        let done = match option {
            OPT_EXPORT_NAME => return self.export_name(&data, no_zeroes).map(Next::Chosen),
            OPT_ABORT => {
                // Whoever aborts need not wait for the answer.
                self.reply(option, REP_ACK, &[]).unwrap_or_default();
                return Ok(Next::Goodbye);
            }
            OPT_GO | OPT_INFO => match self.info(option, &data)? {
                Ok(export) if option == OPT_GO => {
                    self.reply(option, REP_ACK, &[])?;
                    return Ok(Next::Chosen(export));
                }
                other => other.map(drop),
            },
            OPT_LIST => self.list(&data)?,
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                Ok(())
            }
            OPT_STRUCTURED_REPLY => Err(ODD),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, &data)?,
            _ => Err((REP_ERR_UNSUP, "this option is not known")),
        };
        match done {
            Ok(()) => self.reply(option, REP_ACK, &[])?,
            Err(refusal) => self.refuse(option, refusal)?,
        }
        Ok(Next::Option)
    }

    /// The old way to choose, which has no way to say no.
    fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> Result<usize, Ended> {
        let Some(found) = self.find(data) else {
            return Err(Ended::Protocol(format!("there is no export {:?}", printable(data))));
        };
        let mut answer = self.size_and_flags(found);
        answer.resize(answer.len() + if no_zeroes { 0 } else { 124 }, 0);
        self.send(&answer)?;
        Ok(found)
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<Result<usize, Refusal>, Ended> {
        let Some((name, rest)) = split_string(data) else { return Ok(Err(ODD)) };
        let Some((count, asked)) = rest.split_first_chunk() else { return Ok(Err(ODD)) };
        if asked.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
            return Ok(Err(ODD));
        }
        let Some(found) = self.find(name) else { return Ok(Err(NO_EXPORT)) };
        let wants = |kind: u16| asked.chunks_exact(2).any(|asked| asked == kind.to_be_bytes());
        let answer = [&INFO_EXPORT.to_be_bytes()[..], &self.size_and_flags(found)].concat();
        self.reply(option, REP_INFO, &answer)?;
        let Export { name, description, .. } = &self.exports.list[found];
        for (kind, text) in [(INFO_NAME, name), (INFO_DESCRIPTION, description)] {
            if wants(kind) && !text.is_empty() {
                self.reply(option, REP_INFO, &[&kind.to_be_bytes()[..], text.as_bytes()].concat())?;
            }
        }
        let mut blocks = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, BLOCK_SIZE, DEFAULT_MAX_BLOCK] {
            blocks.extend(size.to_be_bytes());
        }
        self.reply(option, REP_INFO, &blocks)?;
        Ok(Ok(found))
    }

    fn list(&mut self, data: &[u8]) -> Result<Result<(), Refusal>, Ended> {
        if !data.is_empty() {
            return Ok(Err(ODD));
        }
        for Export { name, description, .. } in &self.exports.list {
            let len = (name.len() as u32).to_be_bytes();
            self.reply(OPT_LIST, REP_SERVER, &[&len[..], name.as_bytes(), description.as_bytes()].concat())?;
        }
        Ok(Ok(()))
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Result<Result<(), Refusal>, Ended> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // Whatever was chosen before is forgotten, also when this fails.
            self.context_of = None;
        }
        if !self.structured {
            return Ok(Err(NOT_STRUCTURED));
        }
        let Some((name, queries)) = split_string(data).and_then(|(name, rest)| Some((name, queries(rest)?))) else {
            return Ok(Err(ODD));
        };
        let Some(found) = self.find(name) else { return Ok(Err(NO_EXPORT)) };
        let matches = |query: &&[u8]| *query == BASE_ALLOCATION.as_bytes() || (!set && *query == b"base:");
        if queries.iter().any(matches) || (!set && queries.is_empty()) {
            let id = if set { CONTEXT } else { 0 };
            self.reply(option, REP_META_CONTEXT, &[&id.to_be_bytes()[..], BASE_ALLOCATION.as_bytes()].concat())?;
            if set {
                self.context_of = Some(found);
            }
        }
        Ok(Ok(()))
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        std::str::from_utf8(name).ok().and_then(|name| self.exports.find(name))
    }

    fn size_and_flags(&self, export: usize) -> Vec<u8> {
        let export = &self.exports.list[export];
        let mut flags = HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN;
        flags |= match export.disk {
            Some(_) => SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES,
            None => SEND_READ_ONLY,
        };
        if self.structured {
            flags |= SEND_DF;
        }
        [&export.image.size().to_be_bytes()[..], &flags.to_be_bytes()].concat()
    }

    fn refuse(&mut self, option: u32, (kind, text): Refusal) -> Result<(), Ended> {
        self.reply(option, kind, text.as_bytes())
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), Ended> {
        let mut out = REPLY_MAGIC.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            out.extend(number.to_be_bytes());
        }
        out.extend(data);
        self.send(&out)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.stream.write_all(bytes).map_err(|e| Ended::from_io(e, self.patience))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Ended> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|e| Ended::from_io(e, self.patience))?;
        Ok(bytes)
    }
}

/// A string with its length before it, and what follows.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

/// A list of strings that ends with the data.
fn queries(data: &[u8]) -> Option<Vec<&[u8]>> {
    let (count, mut rest) = data.split_first_chunk()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, left) = split_string(rest)?;
        queries.push(query);
        rest = left;
    }
    rest.is_empty().then_some(queries)
}
