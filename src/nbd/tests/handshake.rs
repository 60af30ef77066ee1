//! The handshake, with the server's half written down beforehand.

use std::io::{self, Cursor, Read, Write};

use super::script::option_reply;
use crate::nbd::handshake::negotiate;
use crate::nbd::{Export, NbdError};

struct Tape(Cursor<Vec<u8>>);

impl Read for Tape {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Tape {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const ACK: u32 = 1;
const INFO: u32 = 3;
const ERROR: u32 = 1 << 31;

fn talk(parts: &[Vec<u8>]) -> Result<Export, NbdError> {
    negotiate(&mut Tape(Cursor::new(parts.concat())), "disk", &["base:allocation".into()])
}

fn go(infos: &[&[u8]], end: Vec<u8>) -> Result<Export, NbdError> {
    let mut parts = vec![GREETING.to_vec(), option_reply(8, ERROR | 1, &[])];
    parts.extend(infos.iter().map(|i| option_reply(7, INFO, i)));
    parts.push(end);
    talk(&parts)
}

const EXPORT: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 3];

#[test]
fn a_plain_server() {
    let export = go(&[EXPORT], option_reply(7, ACK, &[])).unwrap();
    assert_eq!((export.size, export.read_only, export.min_block, export.structured), (4096, true, 1, false));
    let blocks = [&[0, 3][..], &512u32.to_be_bytes(), &4096u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let export = go(&[&blocks, &[0, 9, 1], EXPORT], option_reply(7, ACK, &[])).unwrap();
    assert_eq!((export.min_block, export.max_block), (512, 32 << 20));
}

#[test]
fn refusals_carry_the_words_of_the_server() {
    let error = go(&[], option_reply(7, ERROR | 6, b"no such thing")).unwrap_err();
    assert_eq!(error.to_string(), "the NBD server refused export \"disk\": no such thing");
    let error = go(&[], option_reply(7, ERROR | 6, &[])).unwrap_err();
    assert!(error.to_string().contains("no such export"), "{error}");
    assert!(talk(&[b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0".to_vec()]).unwrap_err().to_string().contains("old"));
    assert!(talk(&[b"SSH-2.0-OpenSSH".to_vec()]).unwrap_err().to_string().contains("not as an NBD server"));
}

#[test]
fn broken_handshakes_end() {
    let start = [GREETING.to_vec(), option_reply(8, ACK, &[])];
    let with = |more: Vec<u8>| talk(&[start[0].clone(), start[1].clone(), more]).unwrap_err().to_string();
    let endless = option_reply(7, INFO, EXPORT).repeat(10_000);
    assert!(go(&[], endless).unwrap_err().to_string().contains("more than 256"));
    assert!(with(option_reply(10, 4, b"\0\0\0\x01base:other")).contains("unasked"));
    let context = option_reply(10, 4, b"\0\0\0\x01base:allocation");
    assert!(with(context.repeat(2)).contains("twice"));
    assert!(with(option_reply(10, 4, b"\0")).contains("type 0x4"));
    assert!(with(option_reply(11, ACK, &[])).contains("option 11"));
    let mut long = option_reply(10, 4, &[]);
    long[16..20].fill(0xff);
    assert!(with(long).contains("4294967295 bytes"));
    assert!(go(&[], option_reply(7, ACK, &[])).unwrap_err().to_string().contains("without telling its size"));
    assert!(go(&[&[0, 0, 1]], vec![]).unwrap_err().to_string().contains("3 bytes"));
    assert!(go(&[&[0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 1]], vec![]).is_err());
    let blocks = [&[0, 3][..], &3u32.to_be_bytes(), &[0; 4], &[1; 4]].concat();
    assert!(go(&[&blocks], vec![]).unwrap_err().to_string().contains("block sizes from 3"));
    for cut in 0..GREETING.len() {
        assert!(matches!(talk(&[GREETING[..cut].to_vec()]), Err(NbdError::Lost(_))));
    }
}
