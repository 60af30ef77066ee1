//! A server that says what the test tells it to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::nbd::{BASE_ALLOCATION, Client, NbdError, Options};

pub const SIZE: u64 = 8 << 20;

/// The server's end of a connection.
pub struct Server {
    pub stream: UnixStream,
    /// Minimum block size it announces.
    pub min_block: u32,
    pub structured: bool,
    pub size: u64,
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub kind: u16,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
    pub data: Vec<u8>,
}

/// What byte the scripted disk holds at `at`.
pub fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8
}

pub fn content(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte).collect()
}

/// A client connected to a thread that runs `script` after the handshake.
pub fn with_server<T: Send + 'static>(
    min_block: u32,
    structured: bool,
    size: u64,
    script: impl FnOnce(&mut Server) -> T + Send + 'static,
) -> (Result<Client, NbdError>, JoinHandle<T>) {
    let (ours, stream) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || script(&mut Server::new(stream, min_block, structured, size)));
    let options = Options {
        meta_contexts: vec![BASE_ALLOCATION.into()],
        timeout: Duration::from_secs(2),
        write_timeout: Duration::from_secs(2),
    };
    (Client::from_stream(ours, "disk", &options), thread)
}

impl Server {
    /// Does the handshake; a server of simple replies expects to be asked for no meta context.
    pub fn new(stream: UnixStream, min_block: u32, structured: bool, size: u64) -> Self {
        let mut server = Self { stream, min_block, structured, size };
        server.handshake();
        server
    }

    fn handshake(&mut self) {
        self.put(b"NBDMAGICIHAVEOPT\x00\x03");
        self.get(4);
        let (option, _) = self.option();
        assert_eq!(option, 8);
        if self.structured {
            self.option_reply(8, 1, &[]);
            let (option, data) = self.option();
            assert_eq!(option, 10);
            assert_eq!(data, b"\0\0\0\x04disk\0\0\0\x01\0\0\0\x0fbase:allocation");
            self.option_reply(10, 4, b"\0\0\0\x07base:allocation");
            self.option_reply(10, 1, &[]);
        } else {
            self.option_reply(8, 0x8000_0001, b"no");
        }
        let (option, data) = self.option();
        assert_eq!((option, &data[..]), (7, &b"\0\0\0\x04disk\0\x01\0\x03"[..]));
        let mut info = vec![0, 0];
        info.extend(self.size.to_be_bytes());
        // Has flags, flush, trim, write zeroes; reads in one piece if chunks are spoken at all.
        info.extend([0, if self.structured { 0xe5 } else { 0x65 }]);
        self.option_reply(7, 3, &info);
        let mut info = vec![0, 3];
        for n in [self.min_block, 4096, 32 << 20] {
            info.extend(n.to_be_bytes());
        }
        self.option_reply(7, 3, &info);
        self.option_reply(7, 1, &[]);
    }

    pub fn put(&mut self, bytes: &[u8]) {
        // The client may have hung up on us already; the test looks at what the client says.
        drop(self.stream.write_all(bytes));
    }

    pub fn get(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn option(&mut self) -> (u32, Vec<u8>) {
        let head = self.get(16);
        assert_eq!(&head[..8], b"IHAVEOPT");
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let data = self.get(number(12) as usize);
        (number(8), data)
    }

    fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.put(&option_reply(option, kind, data));
    }

    /// The next request; `None` when the client says goodbye or goes.
    pub fn request(&mut self) -> Option<Request> {
        let mut head = [0; 28];
        self.stream.read_exact(&mut head).ok()?;
        assert_eq!(&head[..4], &[0x25, 0x60, 0x95, 0x13]);
        let flags = u16::from_be_bytes(head[4..6].try_into().unwrap());
        let kind = u16::from_be_bytes(head[6..8].try_into().unwrap());
        let len = u32::from_be_bytes(head[24..28].try_into().unwrap());
        let data = if kind == 1 { self.get(len as usize) } else { Vec::new() };
        let cookie = u64::from_be_bytes(head[8..16].try_into().unwrap());
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap());
        (kind != 2).then_some(Request { kind, flags, cookie, offset, len, data })
    }

    pub fn chunk(&mut self, cookie: u64, done: bool, kind: u16, body: &[u8]) {
        self.put(&chunk(cookie, done, kind, body));
    }

    pub fn data(&mut self, cookie: u64, done: bool, offset: u64, len: usize) {
        let mut body = offset.to_be_bytes().to_vec();
        body.extend(content(offset, len));
        self.chunk(cookie, done, 1, &body);
    }

    pub fn simple(&mut self, cookie: u64, errno: u32) {
        self.put(&simple(cookie, errno));
    }
}

pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

pub fn chunk(cookie: u64, done: bool, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x66, 0x8e, 0x33, 0xef, 0, u8::from(done)];
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out
}

pub fn simple(cookie: u64, errno: u32) -> Vec<u8> {
    let mut out = vec![0x67, 0x44, 0x66, 0x98];
    out.extend(errno.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out
}
