//! Plays the server against bytes that came from anywhere: the body of the fuzz target `nbd_request`, and of the plain test
//! that runs its corpus.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::answer::Desk;
use super::handshake::negotiate;
use super::output::Output;
use super::priority::Lanes;
use super::request::Request;
use super::{Ended, Export, Exports};
use crate::image::{MemImage, OverlayImage};
use crate::nbd::wire::Command;

/// Two small disks, of which the second can be written.
fn exports() -> io::Result<Exports> {
    static DISK: OnceLock<Arc<MemImage>> = OnceLock::new();
    let disk = DISK.get_or_init(|| {
        let mut bytes = vec![0; 3 << 18];
        bytes[..5].copy_from_slice(b"first");
        Arc::new(MemImage::sparse("disk", bytes))
    });
    let overlay = OverlayImage::new(Arc::clone(disk) as _, &std::env::temp_dir()).map_err(io::Error::other)?;
    let list = vec![
        Export::read_only("a", Arc::clone(disk) as _).description("a disk"),
        Export::writable("b", Arc::new(overlay)).alias("disk"),
    ];
    Ok(Exports::new(list).with_default("b"))
}

/// Takes `input` for what a client sends, from its first byte on. Gives how many requests were answered, and all that was
/// sent.
///
/// # Errors
/// When the bytes are not what a client may send.
pub fn rehearse(mut input: &[u8]) -> Result<(usize, Vec<u8>), Ended> {
    let exports = exports().map_err(Ended::Lost)?;
    let mut sent = Vec::new();
    let patience = Duration::ZERO;
    let Some(session) = negotiate(&mut Both(&mut input, &mut sent), &exports, patience)? else { return Ok((0, sent)) };
    let desk = Desk {
        client: 1,
        export: &exports.list[session.export],
        session,
        output: Output::new(&mut sent, session.structured, patience),
        lanes: &Lanes::default(),
        long_read: &Mutex::default(),
        report: &|_| {},
        patience,
    };
    let (mut answered, mut buf) = (0, Vec::new());
    while let Some(request) = Request::read(&mut input, patience)? {
        if request.command() == Some(Command::Disconnect) {
            break;
        }
        let taken = desk.take(request, &mut input, &mut buf)?;
        desk.answer(taken, &mut buf)?;
        answered += 1;
    }
    Ok((answered, sent))
}

/// What comes in and what goes out, as one stream.
struct Both<'a, 'b>(&'a mut &'b [u8], &'a mut Vec<u8>);

impl Read for Both<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Both<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
