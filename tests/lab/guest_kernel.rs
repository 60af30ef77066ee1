//! Unpacks a kernel image into the bare kernel, which QEMU starts directly. A guest without KVM spends more than a second
//! on unpacking itself, at every boot. Where the packing is unknown the guest does it after all.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// The bare kernel (ELF) inside a bzImage; `None` when it cannot be had.
pub fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    // Offsets are those of the x86 boot protocol: sectors of the setup code, then the payload behind it.
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    image.get(0x202..)?.starts_with(b"HdrS").then_some(())?;
    let code = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = code + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?)?;
    let kernel = match payload.get(..4)? {
        [0x02, 0x21, 0x4c, 0x18] => lz4(payload.get(4..)?)?,
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut out = Vec::new();
            zstd::stream::read::Decoder::new(payload).ok()?.single_frame().read_to_end(&mut out).ok()?;
            out
        }
        [0xfd, b'7', b'z', b'X'] => through(&["busybox", "xz", "-dc"], payload)?,
        [0x1f, 0x8b, ..] => through(&["gzip", "-dc"], payload)?,
        _ => return None,
    };
    // The note that tells QEMU where to enter; without it the bare kernel does not start.
    let note = [4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0];
    let bootable = kernel.starts_with(b"\x7fELF")
        && kernel.windows(16).any(|w| (w[..4] == note[..4]) && w[8..12] == note[8..] && w[12..] == *b"Xen\0");
    bootable.then_some(kernel)
}

/// The kernel's LZ4: blocks of at most 8 MiB, each with its packed length before it, and the unpacked length at the end.
fn lz4(mut packed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    while packed.len() > 4 {
        let (len, rest) = packed.split_at(4);
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        if len == 0x184c_2102 {
            packed = rest;
            continue;
        }
        lz4_block(rest.get(..len)?, &mut out)?;
        packed = rest.get(len..)?;
    }
    Some(out)
}

fn lz4_block(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut bytes = block.iter().copied();
    let long = |bytes: &mut dyn Iterator<Item = u8>, nibble: u8| -> Option<usize> {
        let mut len = usize::from(nibble);
        let mut more = if nibble == 15 { u8::MAX } else { 0 };
        while more == u8::MAX {
            more = bytes.next()?;
            len += usize::from(more);
        }
        Some(len)
    };
    while let Some(token) = bytes.next() {
        let literals = long(&mut bytes, token >> 4)?;
        let before = out.len();
        out.extend(bytes.by_ref().take(literals));
        if out.len() - before != literals {
            return None;
        }
        let Some(low) = bytes.next() else { break };
        let distance = usize::from(u16::from_le_bytes([low, bytes.next()?]));
        let len = long(&mut bytes, token & 15)? + 4;
        let from = out.len().checked_sub(distance).filter(|_| distance > 0)?;
        for i in 0..len {
            out.push(out[from + i]);
        }
    }
    Some(())
}

fn through(words: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let (program, words) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    let input = input.to_vec();
    // The payload has a length behind it that the program does not know: what it says of that does not count.
    let feeder = std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let output = child.wait_with_output().ok()?;
    feeder.join().ok()?;
    Some(output.stdout)
}
