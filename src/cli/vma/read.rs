//! `vma list`, `vma config` and `vma verify`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use super::words::Words;
use super::{Failure, Tools, fatal};
use crate::archive::vma::Header;
use crate::cli::restoring::ctime;
use crate::cli::say;

/// The reserved name of a device that holds the state of a running machine.
pub(super) const STATE: &str = "vmstate";

/// What is in the archive, as text. The time comes last: qmrestore waits for it.
pub(super) fn content(header: &Header) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for (name, data) in &header.configs {
        writeln!(text, "CFG: size: {} name: {name}", data.len()).unwrap_or_default();
    }
    for device in &header.devices {
        let (id, size, name) = (device.id, device.size, &device.name);
        match name.as_str() {
            STATE => writeln!(text, "VMSTATE: dev_id={id} memory: {size}"),
            _ => writeln!(text, "DEV: dev_id={id} size: {size} devname: {name}"),
        }
        .unwrap_or_default();
    }
    text + &format!("CTIME: {}\n", ctime(header.ctime))
}

/// The one word there has to be.
fn filename(words: &Words) -> Result<&str, Failure> {
    match words.rest.as_slice() {
        [filename] => Ok(filename),
        _ => Err(Failure::Usage),
    }
}

pub(super) fn list(tools: &Tools, words: &Words) -> Result<(), Failure> {
    say(&content(tools.open(filename(words)?)?.header()));
    Ok(())
}

pub(super) fn config(tools: &Tools, words: &Words) -> Result<(), Failure> {
    let name = words.last('c').unwrap_or("qemu-server.conf");
    let source = tools.open(filename(words)?)?;
    let data = source.header().config(name).ok_or_else(|| Failure::NoConfig(name.to_owned()))?;
    let mut out = std::io::stdout().lock();
    // It may be the only copy somebody keeps.
    out.write_all(data).and_then(|()| out.flush()).map_err(|e| fatal(format!("write failed - {e}")))
}

pub(super) fn verify(tools: &Tools, words: &Words) -> Result<(), Failure> {
    let source = tools.open(filename(words)?)?;
    if words.has('v') {
        say(&content(source.header()));
    }
    tools.restore(source, &BTreeMap::new(), words.has('v')).map_err(|e| fatal(format!("verify failed - {e}")))
}
